"""Files that are complete or not there at all, and JSON that is refused by name."""

import errno
import json
import pathlib

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, read_json_if_valid, write_json


def test_json_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "finished.json"
    write_json(path, {"steps": 1, "text": "naïve"})
    assert read_json(path) == {"steps": 1, "text": "naïve"}
    with pytest.raises(TypeError):
        write_json(path, {"steps": 2, "odd": object()})
    assert read_json(path)["steps"] == 1

    def fail(self, target):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:  # what was written so far does not get the name
        patched.setattr(pathlib.Path, "replace", fail)
        with pytest.raises(OSError):
            write_json(path, {"steps": 3})
    assert read_json(path)["steps"] == 1
    write_json(path, {"steps": 4})
    assert json.loads(path.read_text())["steps"] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["finished.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe{}", b"", b"[]"])
def test_json_that_is_missing_or_broken_is_bad_input_by_name(tmp_path, content):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=str(path)) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_json_objects_are_none_when_that_is_allowed(tmp_path):
    path = tmp_path / "counts.json"
    assert read_json_if_valid(path) is None
    for content, expected in ((b"{", None), (b"[]", None), (b"\xff\xfe{}", None), (b'{"a": 1}', {"a": 1})):
        path.write_bytes(content)
        assert read_json_if_valid(path) == expected


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "part"
    with atomic_path(path) as ours:
        ours.write_text("ours")
        with atomic_path(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]
