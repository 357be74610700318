"""Every shape of a batch is compiled before /health says that the server is ready."""

import json
import threading
import time
import urllib.error
import urllib.request

import jax
import pytest
from helpers import tiny
from serving.conftest import Counting, running

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params


@pytest.fixture
def small(model):
    """A model of its own width, which no other test has compiled: seven shapes of up to 256 tokens."""
    config = tiny.tiny_config(model.vocabulary, max_length=256, width=48)
    loaded = LoadedModel(config, model.vocabulary, jax.device_get(initial_params(config, 0)), "v1", "pair")
    return Embedder(loaded, batch_tokens=256)


@pytest.fixture
def compiled():
    """Counts the programs that JAX compiles or reads from its cache."""
    counted = []

    def count(event, *_, **__):
        counted.append(event) if event == "/jax/core/compile/backend_compile_duration" else None

    jax.monitoring.register_event_duration_secs_listener(count)
    yield counted
    jax.monitoring.unregister_event_duration_listener(count)


TEXTS = ["read", "read the file " * 12, *(f"close file {n}" for n in range(60))]


def test_no_pass_compiles_after_all_shapes_were(small, compiled):
    assert small.shapes(256) == [(1, 64, 64), (2, 64, 64), (4, 64, 64), (1, 128, 64), (2, 128, 64), (1, 256, 64)]
    assert small.shapes(100) == [(1, 64, 64)] and small.shapes(0) == []
    ids = small.vocabulary.encode_batch(TEXTS)
    small.encode_tokens(ids[:1])
    assert compiled  # the control: what is not warm compiles
    for shape in small.shapes(256):
        small.compile(shape)
    compiled.clear()
    for count in (1, 2, 5, 20, len(TEXTS)):
        small.encode_tokens(ids[:count])
    assert not compiled


def health(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Held(Counting):
    """A model whose shapes are compiled when the test lets them; the second one fails."""

    def __init__(self, model):
        super().__init__(model)
        self.let, self.done = threading.Semaphore(0), []

    def compile(self, shape):
        self.let.acquire()
        self.done.append(shape)
        if len(self.done) == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED")


def test_a_server_is_not_ready_until_it_is_warm(model, capfd):
    held = Held(model)
    shapes = model.shapes(256)
    with running(held, warm_up_tokens=256) as url:
        status, answer = health(url)
        assert (status, answer["status"], answer["compiled"]) == (503, "warming up", 0)
        for _ in shapes:
            held.let.release()
        deadline = time.monotonic() + 20
        while health(url)[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert health(url)[1]["status"] == "ok" and held.done == shapes
    assert f"warm up: shape {len(shapes)}/{len(shapes)}" in capfd.readouterr().err


def test_a_server_stops_while_it_warms_up(model):
    held = Held(model)
    with running(held, warm_up_tokens=256) as url:
        assert health(url)[0] == 503
        threading.Timer(0.2, held.let.release).start()  # the shape that is being compiled ends
    assert len(held.done) == 1
