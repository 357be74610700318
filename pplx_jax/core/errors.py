"""The exceptions that a user sees without a traceback, each with an exit code of its own (see `cli`)."""

from collections.abc import Mapping
from typing import Any

BAD_INPUT, PREEMPTED, PROCESS_LOST = 2, 75, 76  # 75 is sysexits' "temporary failure, try again"


class BadInput(Exception):
    """Input the user can mend: the message says what is wrong, where, and how to mend it, in one line. Exit code 2."""


def require(holds: bool, owner: object, field: str, allowed: str) -> None:
    """Raises BadInput that names the field of `owner`, its value and what is allowed, unless that holds."""
    if not holds:
        raise BadInput(f"{type(owner).__name__}.{field}={getattr(owner, field)!r}; set it to {allowed}")


class Unmet(Exception):
    """What a verb was asked to establish does not hold: its report is shown as ever, and the exit code is 1."""

    def __init__(self, report: Mapping[str, Any]):
        super().__init__("; ".join(map(str, report.get("advice", ()))))
        self.report = report


class Preempted(BaseException):
    """The machine was asked back, and what there is to save is saved. Exit code `PREEMPTED`.

    Attributes:
      together: all processes of the job stop at the same place.
    """

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together


class ProcessLost(Exception):
    """Another process of the job did not come or is gone; the message names it. Exit code `PROCESS_LOST`."""
