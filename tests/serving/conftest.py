"""A real server on loopback around a tiny model."""

import contextlib
import socket
import threading
import time

import jax
import numpy as np
import openai
import pytest
from helpers import tiny

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params
from pplx_jax.serving.app import App
from pplx_jax.serving.server import make_server
from pplx_jax.serving.wire import Limits

NAME = "tiny"
SETTINGS = {"max_batch_tokens": 4096, "max_wait": 0.005, "max_queued_tokens": 1 << 20}
LIMITS = Limits(body_bytes=200_000, inputs=50, chunks=60, tokens=3000)


class Counting:
    """An Embedder that counts its calls, and takes as long as it is told to."""

    def __init__(self, model):
        self.model, self.calls, self.seconds, self.failing = model, [], 0.0, None
        self.released = threading.Event()  # encoding waits for it
        self.released.set()

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode_tokens(self, ids, counts=None):
        self.calls.append(len(ids))
        time.sleep(self.seconds)
        self.released.wait(20)
        if self.failing is not None and any(list(chunk) == self.failing for chunk in ids):
            raise RuntimeError("out of luck")
        return self.model.encode_tokens(ids, counts)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Embedder:
    vocabulary = tiny.tiny_vocabulary(tmp_path_factory.mktemp("serving"))
    config = tiny.tiny_config(vocabulary, max_length=256)
    params = jax.tree.map(np.asarray, initial_params(config, 0))
    return Embedder(LoadedModel(config=config, vocabulary=vocabulary, params=params, kind="context_v1", stage="pair"))


@contextlib.contextmanager
def running(model, max_connections=None, **settings):
    """Yields the base URL of a server."""
    app = App(model, NAME, **{"limits": LIMITS, **SETTINGS, **settings})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(app, stop_seconds=10, max_connections=max_connections)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def url(model):
    with running(model) as address:
        yield address


@pytest.fixture
def client(url):
    with connect(url) as opened:
        yield opened


def connect(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
