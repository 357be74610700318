"""What a server counts, in the format of Prometheus."""

import contextlib
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, exposition

from pplx_jax.serving.errors import RequestError

KIND = exposition.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = tuple(float(1 << power) for power in range(4, 18, 2))


class Metrics:
    """Counters of one server.

    Args:
        queued_tokens, queued_requests: return what waits now.
    """

    def __init__(self, queued_tokens: Callable[[], float], queued_requests: Callable[[], float]):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("pplx_jax_requests", "Answered requests", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "pplx_jax_request_seconds", "Time until the answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._batch_tokens = Histogram(
            "pplx_jax_batch_tokens",
            "Tokens of a batch; the sum is all encoded tokens",
            buckets=_TOKENS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "pplx_jax_batch_seconds", "Time of the encoder for a batch", buckets=_SECONDS, registry=registry
        )
        for name, text, value in (
            ("pplx_jax_queued_tokens", "Tokens that wait", queued_tokens),
            ("pplx_jax_queued_requests", "Requests that wait", queued_requests),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def encoded(self, tokens: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    @contextlib.contextmanager
    def request(self, route: str) -> Iterator[None]:
        """Counts the block as a request, with the status of the error that it raises."""
        started, status = time.monotonic(), 500
        try:
            yield
            status = 200
        except RequestError as error:
            status = error.status
            raise
        finally:
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.monotonic() - started)

    def page(self) -> bytes:
        """Returns all values as text."""
        return exposition.generate_latest(self._registry)
