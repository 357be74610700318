"""The one exception a user sees as a single line and exit code 2."""


class BadInput(Exception):
    """Input the user can mend: the message says what is wrong, where, and how to mend it, in one line."""
