"""What a command's folder may take the place of, and that a former one is whole or gone at any moment."""

import shutil

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import describes, replaced_folder, require_free


def is_former(folder):
    return (folder / "mark").exists()


@pytest.fixture
def former(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mark").write_text("former")
    return tmp_path / "out"


def test_nothing_an_empty_folder_and_a_former_one_are_free(former, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (former, tmp_path / "empty", tmp_path / "new", tmp_path / "new" / "deep"):
        require_free(folder, "model", is_former)


@pytest.mark.parametrize("place", ["others", "file", "file/below/it"])
def test_anything_else_is_in_the_way(tmp_path, place):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=f"{place.split('/')[0]} is in the way and no model"):
        require_free(tmp_path / place, "model", is_former)


@pytest.mark.parametrize(
    ("content", "ours"),
    [(b'{"format": 1, "shards": 0, "more": []}', True), (b'{"format": 1}', False), (b"[]", False), (b"\xff", False)],
)
def test_a_file_is_known_by_what_it_holds(tmp_path, content, ours):
    (tmp_path / "index.json").write_bytes(content)
    assert describes(tmp_path / "index.json", "format", "shards") == ours
    assert not describes(tmp_path / "nothing.json")


def test_a_former_folder_is_replaced_whole_or_stays(former, tmp_path):
    with pytest.raises(RuntimeError), replaced_folder(former) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert [path.name for path in former.iterdir()] == ["mark"]
    with replaced_folder(former) as folder:
        (folder / "mark").write_text("new")
        assert (former / "mark").read_text() == "former"
    assert (former / "mark").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_is_moved_aside_before_it_is_deleted(former, monkeypatch):
    remove, deleted = shutil.rmtree, []

    def watched(path, **options):
        deleted.append(path)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    with replaced_folder(former):
        pass
    assert former not in deleted and former.with_name(".out.former") in deleted


def test_a_link_goes_on_to_the_new_folder(former, tmp_path):
    (tmp_path / "link").symlink_to(former, target_is_directory=True)
    with replaced_folder(tmp_path / "link") as folder:
        (folder / "mark").write_text("new")
    assert (tmp_path / "link").is_symlink() and (former / "mark").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "out"}


def test_what_a_kill_left_is_no_part_of_it(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").touch()
    with replaced_folder(tmp_path / "out"):
        pass
    assert not any((tmp_path / "out").iterdir())
