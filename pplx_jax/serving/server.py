"""The verb `serve`: loads a model and serves it over HTTP until a signal."""

import contextlib
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.packages import require_packages

if TYPE_CHECKING:
    import uvicorn

    from pplx_jax.serving.app import App


def serve(
    model_path: str | pathlib.Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    name: str | None = None,
    max_batch_tokens: int = 16384,
    max_wait_ms: float = 5.0,
    max_inputs: int = 512,
    max_chunks: int = 16_000,
    max_document_tokens: int = 1 << 15,
    max_tokens: int = 120_000,
    max_body_bytes: int = 16 << 20,
    max_queued_tokens: int = 1 << 20,
    max_connections: int = 512,
    prompt_name: str | None = None,
    index: str | pathlib.Path | None = None,
    stop_seconds: int = 30,
    warm_up_tokens: int | None = None,
    deterministic: bool = False,
) -> dict[str, Any]:
    """Serves a model. After Ctrl-C or SIGTERM, finishes the running requests and returns.

    There is no authentication: listen on loopback, or use a proxy with authentication.

    Args:
        model_path: a model folder.
        host, port: the address to listen on; port 0 for a free port. The address is printed on standard error.
        name: the model's name for clients; None for the folder's name.
        max_batch_tokens: maximum tokens of concurrent requests in one batch.
        max_wait_ms: how long an idle server waits for more requests.
        max_inputs, max_chunks, max_document_tokens, max_tokens, max_body_bytes: of a request, see `wire.Limits`.
        max_queued_tokens: maximum waiting tokens; more requests are refused with status 429.
        max_connections: maximum open connections; more are answered with status 503.
        prompt_name: the prompt of the model for requests that name none, such as "query" or "document"; None for no
            prompt.
        index: an index of this model, of any engine, to search by hand on the page at "/"; None for no page.
        stop_seconds: how long running requests may take after the signal.
        warm_up_tokens: the shapes of batches with at most so many tokens are compiled at the start, and /health answers
            503 until they are. None for all batches, 0 for no batch: then the first request of each shape waits for the
            compiler.
        deterministic: whether the bits of a vector depend on its own input alone, not on other requests; slower for
            short texts. See `Embedder`.

    Returns:
        {"requests", "batches", "tokens", "seconds"}.

    Raises:
        BadInput: there is no readable model or index or no such prompt, the index is of another model, or the server
            cannot listen on the address.
    """
    require_packages("serve", "starlette", "uvicorn", "prometheus_client", extra="serve")
    given = {"max_batch_tokens": max_batch_tokens, "max_queued_tokens": max_queued_tokens}
    for setting, value in {**given, "max_connections": max_connections, "stop_seconds": stop_seconds}.items():
        if value < 1:
            raise BadInput(f"{setting}={value}: give at least 1")
    if warm_up_tokens is not None and warm_up_tokens < 0:
        raise BadInput(f"warm_up_tokens={warm_up_tokens}: give a number of tokens, or 0 for none")
    with _listening(host, port) as listener:
        from pplx_jax.inference.embedder import Embedder
        from pplx_jax.retrieval.open_index import open_index
        from pplx_jax.serving.app import App
        from pplx_jax.serving.wire import Limits

        limits = Limits(max_body_bytes, max_inputs, max_chunks, max_document_tokens, max_tokens)
        model = Embedder.load(model_path, batch_tokens=max_batch_tokens, deterministic=deterministic)
        model.prompt_text(prompt_name)  # refuses an unknown name
        opened = None if index is None else open_index(index)
        app = App(
            model,
            name or os.path.basename(os.path.abspath(model_path)),
            limits=limits,
            max_batch_tokens=max_batch_tokens,
            max_wait=max_wait_ms / 1000,
            max_queued_tokens=max_queued_tokens,
            prompt_name=prompt_name,
            index=opened,
            warm_up_tokens=sys.maxsize if warm_up_tokens is None else warm_up_tokens,
        )
        address = f"[{host}]" if ":" in host else host
        print(f"serving {model_path} at http://{address}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
        started = time.monotonic()
        with _signals_only_stop():
            make_server(app, stop_seconds=stop_seconds, max_connections=max_connections).run(sockets=[listener])
    batcher = app.batcher
    seconds = round(time.monotonic() - started, 3)
    return {"requests": batcher.requests, "batches": batcher.batches, "tokens": batcher.tokens, "seconds": seconds}


def make_server(app: "App", *, stop_seconds: int = 30, max_connections: int | None = None) -> "uvicorn.Server":
    """Returns a server to start with `run(sockets=[...])` and stop with `should_exit = True`."""
    import uvicorn

    config = uvicorn.Config(
        app.asgi,
        lifespan="on",
        log_level="warning",
        access_log=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=stop_seconds,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Binds the address before the model is loaded, so that a used port is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise BadInput(f"cannot listen on {host} port {port}: {error}; give another --host or --port") from None
    with listener:
        yield listener


@contextlib.contextmanager
def _signals_only_stop() -> Iterator[None]:
    """Ignores signals outside uvicorn, which raises a handled signal again and would so prevent the report."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
