"""`pplx-jax serve`: loads a model and answers HTTP until it is told to stop."""

import contextlib
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pplx_jax.core.errors import BadInput

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
    max_inputs: int = 2048,
    max_body_bytes: int = 16 << 20,
    max_queued_tokens: int = 1 << 20,
    stop_seconds: int = 30,
) -> dict[str, Any]:
    """Serves a model; Ctrl-C or SIGTERM lets what is running end, then returns.

    There is no authentication: keep it on loopback or behind a proxy that has it.

    Args:
        model_path: a model folder.
        host, port: where to listen; port 0 takes a free one. The address is printed on standard error.
        name: what clients call the model; the folder's name where None.
        max_batch_tokens: tokens of concurrent requests encoded together.
        max_wait_ms: how long the first request of a batch waits for others while the encoder is free.
        max_inputs: texts or documents of one request.
        max_body_bytes: bytes of one request.
        max_queued_tokens: tokens that may wait before requests are refused.
        stop_seconds: how long requests may take to end after the signal.

    Returns:
        {"requests", "batches", "tokens", "seconds"}.

    Raises:
        BadInput: there is no readable model, or the address cannot be listened on.
    """
    with _listening(host, port) as listener:
        from pplx_jax.inference.embedder import Embedder
        from pplx_jax.serving.app import App, served_name
        from pplx_jax.serving.wire import Limits

        model = Embedder.load(model_path, batch_tokens=max_batch_tokens)
        app = App(
            model,
            name or served_name(model_path),
            limits=Limits(body_bytes=max_body_bytes, inputs=max_inputs),
            max_batch_tokens=max_batch_tokens,
            max_wait=max_wait_ms / 1000,
            max_queued_tokens=max_queued_tokens,
        )
        model.encode(["The first text pays for the compiler."], overflow="truncate")
        address = f"[{host}]" if ":" in host else host
        print(f"serving {model_path} at http://{address}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
        started = time.monotonic()
        with _signals_only_stop():
            make_server(app, stop_seconds=stop_seconds).run(sockets=[listener])
    batcher = app.batcher
    seconds = round(time.monotonic() - started, 3)
    return {"requests": batcher.requests, "batches": batcher.batches, "tokens": batcher.tokens, "seconds": seconds}


def make_server(app: "App", *, stop_seconds: int = 30) -> "uvicorn.Server":
    """A server that is not running yet: `run(sockets=[...])`, and `should_exit = True` to stop it."""
    import uvicorn

    config = uvicorn.Config(
        app.asgi,
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=stop_seconds,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Takes the address before the model is loaded, so that a port in use is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise BadInput(f"cannot listen on {host} port {port}: {error}; give another --host or --port") from None
    with listener:
        yield listener


@contextlib.contextmanager
def _signals_only_stop() -> Iterator[None]:
    """uvicorn stops by a signal and then raises it again, which here would end the process before its report."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
