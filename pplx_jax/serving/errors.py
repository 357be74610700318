"""The error of a refused request, in OpenAI's format."""

from typing import Any


class RequestError(Exception):
    """A refused request.

    Attributes:
        status: HTTP status.
        param: the invalid field, if any.
        code: machine-readable reason, if any.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Returns the JSON of the reply."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
