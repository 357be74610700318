"""The exceptions a user sees as a single line, each with an exit code of its own (see `cli`)."""

PREEMPTED, PROCESS_LOST = 75, 76  # 75 is sysexits' "temporary failure, try again"


class BadInput(Exception):
    """Input the user can mend: the message says what is wrong, where, and how to mend it, in one line. Exit code 2."""


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
