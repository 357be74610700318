"""Exceptions that the command line shows without a traceback, each with an exit code (see `cli`)."""

from collections.abc import Mapping
from typing import Any

BAD_INPUT, PREEMPTED, PROCESS_LOST = 2, 75, 76  # 75 is sysexits' "temporary failure, try again"


class BadInput(Exception):
    """An error in the input. The message says in one line what is wrong, where, and how to fix it. Exit code 2."""


def require(holds: bool, owner: object, field: str, allowed: str) -> None:
    """Raises BadInput with the field of `owner`, its value and what is allowed, if the condition does not hold."""
    if not holds:
        raise BadInput(f"{type(owner).__name__}.{field}={getattr(owner, field)!r}; set it to {allowed}")


class Unmet(Exception):
    """A check that a verb was asked for has failed. Its report is shown as usual, and the exit code is 1."""

    def __init__(self, report: Mapping[str, Any]):
        super().__init__("; ".join(map(str, report.get("advice", ()))))
        self.report = report


class Preempted(BaseException):
    """The machine is being preempted, and the state has been saved. Exit code `PREEMPTED`.

    Attributes:
      together: whether all processes of the job stop at the same step.
    """

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together


class ProcessLost(Exception):
    """Another process of the job did not start or has exited; the message names it. Exit code `PROCESS_LOST`."""
