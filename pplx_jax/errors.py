"""The exceptions that a user sees without a traceback."""

from collections.abc import Mapping
from typing import Any


class BadInput(Exception):
    """Input the user can mend: the message says what is wrong, where, and how to mend it, in one line."""


class Unmet(Exception):
    """What a verb was asked to establish does not hold: its report is shown as ever, and the exit code is 1."""

    def __init__(self, report: Mapping[str, Any]):
        super().__init__("; ".join(map(str, report.get("advice", ()))))
        self.report = report
