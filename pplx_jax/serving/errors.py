"""What a request is refused with, in the shape of OpenAI's errors."""

from typing import Any


class RequestError(Exception):
    """A refusal.

    Attributes:
        status: HTTP status.
        param: the field at fault, if it is one.
        code: a word for programs, if there is one.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
