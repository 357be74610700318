"""`push-to-hub` against a server of the hub's upload protocol on loopback."""

import base64
import contextlib
import hashlib
import json

import huggingface_hub.constants
import pytest
from helpers.loopback_server import serving

from pplx_jax.cli import main as cli

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "modules.json": b"[]",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlibrary_name: sentence-transformers\n---\n# A model\n",
    "1_Pooling/config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40,
}


class Hub:
    """The part of the protocol that an upload uses: large files by LFS, the others in the commit."""

    def __init__(self, status=200):
        self.status = status
        self.repositories, self.branches, self.stored, self.commits = [], [], {}, []
        self.tokens, self.uploads = set(), 0

    def answer(self, method, path, headers, body):
        path = path.partition("?")[0]
        if method == "PUT":
            self.uploads += 1
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if path.startswith(("/api/repos", "/api/models", "/lab")):  # others concern no repository
            self.tokens.add(headers.get("Authorization"))
        if self.status != 200:
            return self.status, {"error": "You may not write here"}
        lines = [json.loads(line) for line in body.splitlines()]
        sent = lines[0] if lines else {}
        match path.split("/")[1:]:
            case ["api", "repos", "create"]:
                self.repositories.append(
                    (sent["organization"], sent["name"], sent.get("visibility", sent.get("private")))
                )
                return 200, {"url": f"{self.url}/lab/tiny"}
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", "models", "lab", "tiny", "branch", branch]:
                self.branches.append(branch)
                return 200, {}
            case ["api", "models", "lab", "tiny", "preupload", _]:
                return 200, {"files": [self._mode(file["path"]) for file in sent["files"]]}
            case ["lab", "tiny.git", "info", "lfs", "objects", "batch"]:
                objects = [{**one, **self._upload(one["oid"])} for one in sent["objects"]]
                return 200, {"transfer": "basic", "objects": objects}
            case ["api", "models", "lab", "tiny", "commit", branch]:
                self.commits.append((branch, lines))
                return 200, {"commitUrl": f"{self.url}/lab/tiny/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return 404, {"error": f"{method} {path} is unknown"}

    @staticmethod
    def _mode(path):
        return {"path": path, "uploadMode": "lfs" if path.endswith("safetensors") else "regular", "shouldIgnore": False}

    def _upload(self, oid):
        action = {"upload": {"href": f"{self.url}/objects/{oid}", "header": {}}}
        return {} if oid in self.stored else {"actions": action}

    @contextlib.contextmanager
    def running(self, monkeypatch):
        with serving(self.answer) as self.url:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", self.url)
            yield


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name, content in FILES.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    return tmp_path / "out"


def committed(lines):
    """The files of a commit, and for LFS the hash and size of the content."""
    files = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = value["oid"], value["size"]
    return files


def test_one_commit_has_all_files(exported, monkeypatch, capsys):
    hub = Hub()
    with hub.running(monkeypatch):
        assert cli.main(["push-to-hub", str(exported), "lab/tiny", "--private", "--json"]) == cli.DONE
        result = json.loads(capsys.readouterr().out)
        assert result == {"repository": f"{hub.url}/lab/tiny", "commit": COMMIT}
    assert [(organization, name) for organization, name, _ in hub.repositories] == [("lab", "tiny")]
    assert hub.repositories[0][2] in (True, "private")
    large = FILES["model.safetensors"]
    digest = hashlib.sha256(large).hexdigest()
    ((branch, lines),) = hub.commits
    assert branch == "main" and hub.stored == {digest: large}
    assert committed(lines) == {**FILES, "model.safetensors": (digest, len(large))}
    assert hub.tokens == {"Bearer hf_secret"}
    with hub.running(monkeypatch):
        assert cli.main(["push-to-hub", str(exported), "lab/tiny"]) == cli.DONE
    assert len(hub.commits) == 2 and hub.uploads == 1  # the hub has the large file


def test_a_branch(exported, monkeypatch):
    hub = Hub()
    with hub.running(monkeypatch):
        assert cli.main(["push-to-hub", str(exported), "lab/tiny", "--revision=trial"]) == cli.DONE
    assert hub.branches == ["trial"] and [branch for branch, _ in hub.commits] == ["trial"]


def refusal(capsys, *words):
    assert cli.main(["push-to-hub", *map(str, words)]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_is_wrong_is_said_in_one_line(exported, monkeypatch, capsys, tmp_path):
    (exported / "modules.json").unlink()
    assert "out has no modules.json; give the folder that export-hf wrote" in refusal(capsys, exported, "lab/tiny")
    (exported / "modules.json").write_bytes(b"[]")
    assert "no folder" in refusal(capsys, tmp_path / "nothing", "lab/tiny")
    assert "'tiny' is no repository of the hub; give ORG/NAME" in refusal(capsys, exported, "tiny")
    hub = Hub(status=403)
    with hub.running(monkeypatch):
        error = refusal(capsys, exported, "lab/tiny")
    assert "no commit was made to lab/tiny: " in error and "403" in error and "hf_secret" not in error
    assert hub.commits == []


def test_without_a_token_nothing_is_sent(exported, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(exported.parent / "no_token"))
    hub = Hub()
    with hub.running(monkeypatch):
        assert "set HF_TOKEN to one that may write" in refusal(capsys, exported, "lab/tiny")
    assert not hub.tokens
