"""Models of the Hugging Face hub by name, from a cache folder and from a server of the hub's protocol on loopback."""

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.loopback_server import serving
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


def hub(files, requests):
    """The part of the hub's protocol that a download uses, for `serving`; `requests` collects the paths."""

    def answer(_method, url, _headers, _body):
        requests.append(url)
        path = url.partition("?")[0]
        if path.startswith("/api/models/lab/tiny/tree/"):
            return 200, [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        if path.startswith("/api/models/lab/tiny/revision/") or path == "/api/models/lab/tiny":
            if path.rpartition("/")[2] not in ("main", "tiny", COMMITS["main"]):
                return 404, {}, {"X-Error-Code": "RevisionNotFound"}
            siblings = [{"rfilename": name} for name in files]
            return 200, {"id": "lab/tiny", "modelId": "lab/tiny", "sha": COMMITS["main"], "siblings": siblings}
        content = files.get(path.removeprefix(f"/lab/tiny/resolve/{COMMITS['main']}/"))
        if content is None:
            return 404, {}, {"X-Error-Code": "RepoNotFound"}
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        return 200, content, {"ETag": tag, "X-Repo-Commit": COMMITS["main"]}

    return answer


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_then_read_from_the_cache(cache, tmp_path):
    """Through the verb, in another process, from a server; without a network afterwards."""
    source = cache / "models--lab--tiny" / "snapshots" / COMMITS["main"]
    files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    unread = {"onnx/model.onnx": b"x" * 10}
    requests = []
    (tmp_path / "in.jsonl").write_text('{"text": "read the file"}\n')
    given = {"HF_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_XET": "1"}
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

    with serving(hub({**files, **unread}, requests)) as url:
        done = embed("lab/tiny", "first", HF_ENDPOINT=url)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not any("onnx" in path for path in requests)
        refused = embed("lab/tiny@v9", "none", HF_ENDPOINT=url)
        assert refused.returncode == 2 and "has no revision 'v9'" in refused.stderr
    again = embed("lab/tiny", "second", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr[-2000:]
    first, second = (np.load(tmp_path / name / "00000.npy") for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, load_encoder(source).encode(["read the file"]))
