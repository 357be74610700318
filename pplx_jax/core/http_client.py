"""JSON over HTTP with persistent connections and retries, for the services that search and evaluation use."""

import json
from collections.abc import Mapping
from typing import Any

from pplx_jax.core.errors import BadInput

RETRIED_STATUSES = (429, 500, 502, 503, 504)


class HttpClient:
    """A client of one service; threads may share it.

    Args:
        url: such as http://localhost:8080, with or without a path.
        connections: how many stay open; further threads wait for one.
        retries: of a request that was interrupted or answered with one of `RETRIED_STATUSES`; the pauses grow, and a
            Retry-After header is obeyed. A service that does not answer at all is retried for a few seconds only.
        seconds: timeout of a request.
        headers: of every request.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 1,
        retries: int = 8,
        seconds: float = 180.0,
        headers: Mapping[str, str] | None = None,
    ):
        try:
            import urllib3
        except ImportError:
            raise BadInput("HTTP services need urllib3: pip install 'pplx-jax[search]'") from None
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is not a URL; give one such as http://localhost:8080")
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            block=True,
            timeout=seconds,
            headers=dict(headers or {}),
            retries=urllib3.Retry(
                total=retries,
                connect=min(retries, 3),
                status_forcelist=RETRIED_STATUSES,
                allowed_methods=None,
                backoff_factor=0.25,
                backoff_max=30,
                backoff_jitter=0.25,
                raise_on_status=False,
            ),
        )
        self._failure = urllib3.exceptions.HTTPError

    def send(
        self, method: str, path: str, value: Any = None, *, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Sends a request and returns the answer, whatever its status.

        Args:
            method: of HTTP.
            path: starts with "/".
            value: the body, sent as JSON.
            body: the body as bytes, instead of `value`.
            kind: content type of `body`.

        Returns:
            (status, the JSON object of the answer, or {"message": text} for any other answer).

        Raises:
            BadInput: the service does not answer, after all retries.
        """
        if value is not None:
            body = json.dumps(value, ensure_ascii=False).encode()
        headers = {**self._pool.headers, "Content-Type": kind} if body is not None else None
        try:
            answer = self._pool.request(method, self.url + path, body=body, headers=headers)
        except self._failure as error:
            reason = str(getattr(error, "reason", None) or error)
            reason = reason.partition("): ")[2] or reason  # without the connection's description
            raise BadInput(f"no answer from {self.url} ({reason}); start the service or correct the URL") from None
        try:
            content = json.loads(answer.data)
        except ValueError:
            content = answer.data.decode(errors="replace")
        return answer.status, content if isinstance(content, dict) else {"message": str(content)[:500]}
