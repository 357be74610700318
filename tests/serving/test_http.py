"""The server below the client: batches, limits, broken requests, and how it ends."""

import concurrent.futures
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
from serving.conftest import Counting, connect, running

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params
from pplx_jax.serving.wire import Limits


def post(url, body, path="/v1/embeddings"):
    """(status, JSON of the reply)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


CONTEXT = "/v1/contextualizedembeddings"


def same_integers(found, expected):
    """Equal but for rounding: texts of a request share sequences of another length."""
    assert found.shape == expected.shape and np.abs(found - expected.astype(np.int32)).max() <= 1


def test_concurrent_requests_share_encoder_calls(model):
    counting = Counting(model)
    texts = [f"{verb} the {noun}" for verb in ("read", "write", "open") for noun in ("file", "index", "a", "b", "c")]
    with running(counting) as url, connect(url) as client, concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
        counting.seconds = 0.2
        answers = list(pool.map(lambda text: client.embeddings.create(model="tiny", input=text), texts))
    assert sum(counting.calls) == len(texts)
    assert len(counting.calls) <= len(texts) // 3
    alone = model.encode(texts).astype(np.int32)
    found = np.array([answer.data[0].embedding for answer in answers])
    assert np.abs(found - alone).max() <= 1  # each has its own, in spite of the company


def test_texts_and_documents_share_a_batch_and_keep_apart(model):
    counting = Counting(model)
    with running(counting, max_wait=0.5) as url, concurrent.futures.ThreadPoolExecutor(2) as pool:
        text = pool.submit(post, url, {"input": ["read the file", "close"]})
        documents = {"input": [["read the file", "close"], ["open"]]}
        document = pool.submit(post, url, documents, "/v1/contextualizedembeddings")
        (_, text), (_, document) = text.result(), document.result()
    assert counting.calls == [5]
    found = np.array([chunk["embedding"] for part in document["data"] for chunk in part["data"]])
    expected = np.concatenate(model.encode_documents(documents["input"])).astype(np.int32)
    assert np.abs(found - expected).max() <= 1
    alone = np.array([entry["embedding"] for entry in text["data"]])
    assert np.abs(alone - model.encode(["read the file", "close"]).astype(np.int32)).max() <= 1
    assert np.abs(alone[0] - found[0]).max() > 1  # late chunking saw the neighbour


def test_a_batch_has_a_limit(model):
    counting = Counting(model)
    with running(counting, max_batch_tokens=10) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:
        counting.seconds = 0.1
        assert all(status == 200 for status, _ in pool.map(lambda _: post(url, {"input": "read file"}), range(8)))
    tokens = int(model.count_tokens(["read file"])[0])
    assert max(counting.calls) <= max(10 // tokens, 1)


def test_what_fails_alone_does_not_fail_the_others(model):
    counting = Counting(model)
    counting.failing = model.vocabulary.encode("close")
    with running(counting, max_wait=0.5) as url, concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda text: post(url, {"input": text}), ["read", "close", "open"]))
    assert [status for status, _ in results] == [200, 500, 200]
    assert results[1][1]["error"]["type"] == "server_error"


def test_too_much_waiting_is_refused_not_kept(model):
    counting = Counting(model)
    counting.seconds = 0.5
    with (
        running(counting, max_queued_tokens=1, max_batch_tokens=1, max_wait=0) as url,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        statuses = [status for status, _ in pool.map(lambda _: post(url, {"input": "read"}), range(6))]
    assert set(statuses) == {200, 429}


def test_texts_without_tokens_count_in_the_queue(model):
    counting = Counting(model)
    counting.released.clear()
    with running(counting, max_queued_tokens=50, max_batch_tokens=1) as url:
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            first = pool.submit(post, url, {"input": "read"})
            wait_until(lambda: counting.calls == [1])
            waiting = [pool.submit(post, url, {"input": [""] * 10}) for _ in range(5)]
            wait_until(lambda: queued(url) == 50)
            status, answer = post(url, {"input": [""]})
            assert (status, answer["error"]["code"]) == (429, "busy")
            counting.released.set()
            assert {request.result()[0] for request in [first, *waiting]} == {200}
        assert post(url, {"input": [""]})[0] == 200  # the server recovers


def test_metrics_count_requests_tokens_and_what_waits(model):
    counting = Counting(model)
    with running(counting) as url:
        assert post(url, {"input": ["read the file", "close"]})[0] == 200
        assert post(url, {"input": 3})[0] == 422
        counting.released.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(post, url, {"input": "read"})
            wait_until(lambda: len(counting.calls) == 2)
            second = pool.submit(post, url, {"input": ["write", ""]})
            wait_until(lambda: queued(url) > 0)
            during = metrics(url)
            counting.released.set()
            assert first.result()[0] == second.result()[0] == 200
        after = metrics(url)
    route = 'route="/v1/embeddings"'
    assert during["pplx_jax_queued_requests"] == 1 and after["pplx_jax_queued_requests"] == 0
    assert during["pplx_jax_queued_tokens"] == model.count_tokens(["write"]).sum() + 1
    assert after[f'pplx_jax_requests_total{{{route},status="200"}}'] == 3
    assert after[f'pplx_jax_requests_total{{{route},status="422"}}'] == 1
    assert after[f"pplx_jax_request_seconds_count{{{route}}}"] == 4
    texts = ["read the file", "close", "read", "write"]
    assert after["pplx_jax_batch_tokens_sum"] == model.count_tokens(texts).sum()
    assert after["pplx_jax_batch_seconds_count"] == 3
    assert after["process_resident_memory_bytes"] > 0


def metrics(url):
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_connections_have_a_limit(model):
    with running(model, max_connections=3) as url:
        address = url.removeprefix("http://").split(":")
        open_ones = [socket.create_connection((address[0], int(address[1]))) for _ in range(3)]
        wait_until(lambda: status_of_health(url) == 503)
        for connection in open_ones:
            connection.close()
        wait_until(lambda: status_of_health(url) == 200)


def status_of_health(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_limits_of_a_request_are_those_of_the_hosted_api_unless_changed(model):
    assert Limits() == Limits(inputs=512, chunks=16_000, document_tokens=32_768, tokens=120_000)
    limit = int(model.count_tokens(["read"])[0])
    with running(model, limits=Limits(document_tokens=limit)) as url:
        status, answer = post(url, {"input": ["read", "read the file"]})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert f"the server takes {limit}" in answer["error"]["message"]
        assert post(url, {"input": ["read"] * 512})[0] == 200
        assert post(url, {"input": ["read"] * 513})[0] == 413


def test_requests_of_clients_that_left_are_not_encoded(model):
    counting = Counting(model)
    counting.released.clear()
    with running(counting, max_batch_tokens=1) as url, concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url, {"input": "read"})
        wait_until(lambda: counting.calls == [1])
        gone = [sent(url, {"input": ["read", "write"]}) for _ in range(5)]
        wait_until(lambda: queued(url) == 5 * int(model.count_tokens(["read", "write"]).sum()))
        for connection in gone:
            connection.close()
        wait_until(lambda: queued(url) == 0)
        last = pool.submit(post, url, {"input": ["open", "close", "read"]})
        wait_until(lambda: queued(url) > 0)
        counting.released.set()
        assert [first.result()[0], last.result()[0]] == [200, 200]
    assert counting.calls == [1, 3]


def sent(url, body):
    """A connection that a request was sent on, and whose reply nobody read yet."""
    content = json.dumps(body).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/embeddings", content, {"Content-Type": "application/json"})
    return connection


def queued(url):
    with urllib.request.urlopen(f"{url}/health") as reply:
        return json.load(reply)["queued_tokens"]


def wait_until(holds):
    while not holds():
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/contextualizedembeddings"])
def test_a_far_too_long_text_is_refused_by_its_length(model, monkeypatch, path):
    monkeypatch.setattr(type(model.vocabulary), "encode_batch", lambda *_: pytest.fail("tokenized"))
    texts = ["read", "x" * 150_000] if path == "/v1/embeddings" else [["read"], ["read", "x" * 150_000]]
    with running(model) as url:
        status, answer = post(url, {"input": texts}, path)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "1 has at least " in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b"[" * 5000 + b"]" * 5000, 400, "invalid_json"),
        ({"model": "tiny"}, 422, "invalid_value"),
        (b'{"input": "\\ud800"}', 422, "invalid_value"),
        ({"input": "read", "encoding_format": "base64_binary", "dimensions": 12}, 422, "invalid_value"),
        ({"input": "read", "bit_order": "middle"}, 422, "invalid_value"),
        ({"input": [["read"]]}, 422, "invalid_value"),
        (b'{"input": "' + b"x" * 250_000 + b'"}', 413, "too_large"),
    ],
)
def test_a_broken_request_is_named(url, body, status, code):
    found, answer = post(url, body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("given", "status"),
    [("read", 422), (["read"], 422), ([[]], 422), ([["read", 5]], 422), ([["a"] * 61], 413), ([["file " * 300]], 400)],
)
def test_a_broken_document_is_refused(url, given, status):
    assert post(url, {"input": given}, "/v1/contextualizedembeddings")[0] == status


def test_other_paths_answer_in_the_same_shape(url):
    assert post(url, {}, "/v1/chat")[1]["error"]["type"] == "invalid_request_error"
    assert post(url, {}, "/health")[0] == 405
    with urllib.request.urlopen(f"{url}/health") as reply:
        assert json.load(reply)["status"] == "ok"


def test_a_request_names_the_prompt_of_its_texts(model):
    """The default is that of the server. The first chunk of a document has the prompt."""
    loaded = LoadedModel(model.config, model.vocabulary, initial_params(model.config, 0), "v1", "pair")
    prompted = Embedder(dataclasses.replace(loaded, prompts={"query": "ask: ", "document": "tell: "}))
    texts = ["read the file", "close"]

    def vectors(url, **fields):
        status, body = post(url, {"input": texts, **fields})
        assert status == 200
        return np.array([entry["embedding"] for entry in body["data"]])

    with running(prompted) as plain, running(prompted, prompt_name="document") as documents:
        expected = {name: prompted.encode(texts, prompt_name=name) for name in (None, "query", "document")}
        same_integers(vectors(plain), expected[None])
        same_integers(vectors(plain, prompt_name="query"), expected["query"])
        same_integers(vectors(documents), expected["document"])
        same_integers(vectors(documents, prompt_name="query"), expected["query"])
        status, body = post(plain, {"input": [texts], "prompt_name": "document"}, CONTEXT)
        found = [entry["embedding"] for entry in body["data"][0]["data"]]
        same_integers(np.array(found), prompted.encode_documents([texts])[0])
        for wrong in ("clustering", 3):
            status, body = post(plain, {"input": texts, "prompt_name": wrong})
            assert status == 422 and body["error"]["param"] == "prompt_name"


def test_a_stop_lets_running_requests_end(model):
    counting = Counting(model)
    results = []
    with running(counting) as url:
        counting.seconds = 1.0
        thread = threading.Thread(target=lambda: results.append(post(url, {"input": "read"})))
        thread.start()
        while not counting.calls:
            time.sleep(0.01)
    thread.join()
    assert results[0][0] == 200


@pytest.mark.slow
def test_the_verb_serves_until_sigterm_and_reports(model, tmp_path):
    save_model(tmp_path / "small", model.config, model.vocabulary, initial_params(model.config, 0), stage="pair")
    command = [sys.executable, "-m", "pplx_jax", "serve", "--model", str(tmp_path / "small"), "--port=0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    try:
        url = next(line.split()[-1] for line in process.stderr if line.startswith("serving "))
        with connect(url.removesuffix("/v1")) as client:
            assert isinstance(client, openai.OpenAI)
            assert len(client.embeddings.create(model="small", input="read").data[0].embedding) == model.dims
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.DONE
    result = json.loads(output)
    assert (result["requests"], result["batches"]) == (1, 1)


def test_an_address_in_use_is_bad_input(url, tmp_path, capsys):
    port = url.rpartition(":")[2]
    assert cli.main(["serve", "--model", str(tmp_path), "--port", port]) == cli.BAD_INPUT
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
