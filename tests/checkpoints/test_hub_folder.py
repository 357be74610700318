"""Models of the Hugging Face hub by name, from a cache folder and from a server of the hub's protocol on loopback."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from helpers import tiny
from huggingface_hub import constants

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.checkpoints.initial_model import load_weights, model_to_train
from pplx_jax.checkpoints.model_folder import load_config, load_model, save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import Mesh

COMMITS = {"main": "1" * 40, "v1": "2" * 40}


def save(folder, seed):
    vocabulary = tiny.tiny_vocabulary(folder)
    config = tiny.tiny_config(vocabulary)
    save_model(folder, config, vocabulary, initial_params(config, seed), stage="pair")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the hub that has lab/tiny at two revisions."""
    cache = tmp_path_factory.mktemp("hub")
    repo = cache / "models--lab--tiny"
    (repo / "refs").mkdir(parents=True)
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        (repo / "refs" / revision).write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        save(repo / "snapshots" / commit, seed)
    return cache


@pytest.fixture
def offline(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def test_a_name_is_a_folder_of_the_cache(offline):
    snapshots = offline / "models--lab--tiny" / "snapshots"
    for name, commit in {"lab/tiny": "1", "lab/tiny@v1": "2", f"lab/tiny@{'2' * 40}": "2"}.items():
        assert find_model(name) == snapshots / (commit * 40)
        assert find_model(pathlib.Path(name)) == snapshots / (commit * 40)


def test_every_reader_of_a_model_takes_a_name(offline):
    folder = offline / "models--lab--tiny" / "snapshots" / COMMITS["v1"]
    expected = load_model(folder)
    assert load_model("lab/tiny@v1").fingerprint == expected.fingerprint != load_model("lab/tiny").fingerprint
    assert load_config("lab/tiny@v1") == expected.config
    assert load_encoder("lab/tiny@v1").fingerprint == expected.fingerprint
    weights = load_weights("lab/tiny@v1", model_to_train(None, "lab/tiny@v1"), Mesh().build())
    jax.tree.map(np.testing.assert_array_equal, weights, expected.params)


def test_a_path_stays_a_path(offline, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "lab").mkdir()
    for path in ("run/merged", "lab/tiny", "/lab/tiny", "./other/tiny", "tiny", "a/b/c", "gs://bucket/tiny"):
        assert str(find_model(path)).endswith(path.removeprefix("./"))
        if not path.startswith("gs:"):
            assert "snapshots" not in str(find_model(path))
    with pytest.raises(BadInput, match="no model in run/merged: the folder does not exist; give the folder of a stage"):
        load_model("run/merged")


def test_what_is_missing_is_said_in_one_line(offline):
    for name in ("lab/nothing", "lab/tiny@v2"):
        with pytest.raises(BadInput, match="is not in the cache and cannot be fetched; check the network") as refused:
            load_model(name)
        assert "\n" not in str(refused.value)


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download uses. `files` and `requests` are set on a subclass."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requests.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/lab/tiny/tree/"):
            files = self.files.items()
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files
            ]
            return self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/lab/tiny/revision/") or path == "/api/models/lab/tiny":
            revision = path.rpartition("/")[2]
            if revision not in ("main", "tiny", COMMITS["main"]):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "lab/tiny", "modelId": "lab/tiny", "sha": COMMITS["main"], "siblings": siblings}
            return self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/lab/tiny/resolve/{COMMITS['main']}/")
        if name in self.files:
            content = self.files[name]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._send(200, content, {"ETag": tag, "X-Repo-Commit": COMMITS["main"]})
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_then_read_from_the_cache(cache, tmp_path):
    """Through the verb, in another process, from a server; without a network afterwards."""
    source = cache / "models--lab--tiny" / "snapshots" / COMMITS["main"]
    files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    unread = {"onnx/model.onnx": b"x" * 10}
    handler = type("Hub", (_Hub,), {"files": {**files, **unread}, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "in.jsonl").write_text('{"text": "read the file"}\n')
    given = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    given |= {"JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_XET": "1"}
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, **given}

    def embed(model, output, **more):
        command = [
            sys.executable,
            "-m",
            "pplx_jax",
            "embed",
            f"--model={model}",
            "--input=in.jsonl",
            f"--output={output}",
        ]
        return subprocess.run(
            command, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True, timeout=120
        )

    try:
        done = embed("lab/tiny", "first")
        assert done.returncode == 0, done.stderr[-2000:]
        assert not any("onnx" in path for path in handler.requests)
        refused = embed("lab/tiny@v9", "none")
        assert refused.returncode == 2 and "has no revision 'v9'" in refused.stderr
    finally:
        server.shutdown()
        server.server_close()
    again = embed("lab/tiny", "second", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr[-2000:]
    first, second = (np.load(tmp_path / name / "00000.npy") for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, load_encoder(source).encode(["read the file"]))
