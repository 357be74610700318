"""The exit codes of `pplx-jax`, and the exceptions that end it with one of them and without a traceback."""

from collections.abc import Mapping
from typing import Any

DONE, FAILED, BAD_INPUT, PREEMPTED, PROCESS_LOST, INTERRUPTED = 0, 1, 2, 75, 76, 130
# 75 is EX_TEMPFAIL of sysexits.h; 130 is 128 + SIGINT, as shells report it.
EXIT_CODES = {
    DONE: "done",
    FAILED: "failed: a message says why, a traceback where, or a report what is not met (parity, memory)",
    BAD_INPUT: "bad input: one line says what is wrong, where, and how to fix it",
    PREEMPTED: "preempted by SIGTERM: progress is saved; run the same command again",
    PROCESS_LOST: "another process of the job is missing or was killed; one line names it",
    INTERRUPTED: "interrupted from the keyboard",
}


class BadInput(Exception):
    """Input that the user can fix: one line says what is wrong, where, and how to fix it. Exit code 2."""


def require(holds: bool, owner: object, field: str, allowed: str) -> None:
    """Raises BadInput with the field of `owner`, its value and the allowed values, unless `holds` is true."""
    if not holds:
        raise BadInput(f"{type(owner).__name__}.{field}={getattr(owner, field)!r}; set it to {allowed}")


class Failed(RuntimeError):
    """A failure that its message explains: it is shown without a traceback. Exit code 1."""


class Unmet(Exception):
    """A check that a verb makes has failed (a model does not fit). The report is printed as usual. Exit code 1."""

    def __init__(self, report: Mapping[str, Any]):
        super().__init__("; ".join(map(str, report.get("advice", ()))))
        self.report = report


class Preempted(BaseException):
    """SIGTERM arrived, and progress is saved. Exit code 75.

    Attributes:
      together: all processes of the job stop at the same step.
    """

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together


class ProcessLost(Exception):
    """Another process of the job did not start or was killed; the message names it. Exit code 76."""
