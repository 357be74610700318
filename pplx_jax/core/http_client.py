"""JSON over HTTP with kept connections and retries, for the services that searching and evaluating talk to."""

import json
from collections.abc import Mapping
from typing import Any

from pplx_jax.core.errors import BadInput

RETRIED_STATUSES = (429, 500, 502, 503, 504)


class HttpClient:
    """One service; safe to share between threads.

    Args:
        url: such as http://localhost:8080, with or without a path.
        connections: kept open; more threads than this wait for one.
        retries: of a request that was answered by one of `RETRIED_STATUSES` or cut off, with growing pauses (a
            Retry-After is obeyed). A service that does not answer at all is given up after a few seconds.
        seconds: that a request may take.
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
            raise BadInput("talking to a service needs urllib3: pip install 'pplx-jax[search]'") from None
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is no address; give one such as http://localhost:8080")
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
        """Sends a request and reads the answer, whatever its status.

        Args:
            method, path: of HTTP; the path starts with "/".
            value: sent as JSON; or
            body: sent as it is, of content type `kind`.

        Returns:
            (status, the answer's JSON object; {"message": text} where it is something else).

        Raises:
            BadInput: nobody answers, after all retries.
        """
        if value is not None:
            body = json.dumps(value, ensure_ascii=False).encode()
        headers = {**self._pool.headers, "Content-Type": kind} if body is not None else None
        try:
            answer = self._pool.request(method, self.url + path, body=body, headers=headers)
        except self._failure as error:
            reason = str(getattr(error, "reason", None) or error)
            reason = reason.partition("): ")[2] or reason  # without the connection's description
            raise BadInput(f"nobody answers at {self.url} ({reason}); start the service or mend the address") from None
        try:
            content = json.loads(answer.data)
        except ValueError:
            content = answer.data.decode(errors="replace")
        return answer.status, content if isinstance(content, dict) else {"message": str(content)[:500]}
