"""The copy of the working tree that jobs run."""

import os
import pathlib
import re
import runpy
import shutil

import pytest
import setuptools

from launch import package
from pplx_jax.core.errors import BadInput

ROOT = package.ROOT


@pytest.fixture
def tree(tmp_path):
    """A small tree of the same layout."""
    root = tmp_path / "tree"
    for part in ("pplx_jax", "gin", "launch"):
        (root / part / "__pycache__").mkdir(parents=True)
        (root / part / "__pycache__" / "a.pyc").write_text("old")
        (root / part / "a.txt").write_text(part)
    for part in ("setup.py", "constraints.txt", "README.md", "LICENSE"):
        (root / part).write_text(part)
    shutil.copy(ROOT / "launch" / "Dockerfile", root / "launch")
    (root / "tests").mkdir()
    (root / "quickstart_run").mkdir()
    return root


def test_a_package_is_the_tree_without_what_is_left_over(tree, tmp_path):
    made = package.pack(tmp_path / "packages", tree)
    files = {str(path.relative_to(made.path)) for path in made.path.rglob("*") if path.is_file()}
    assert files == {
        *(f"{part}/a.txt" for part in ("pplx_jax", "gin", "launch")),
        *("setup.py", "constraints.txt", "README.md", "LICENSE", "launch/Dockerfile", "Dockerfile"),
    }
    assert made.path.name == made.digest == package.digest_of(tree)
    assert [path.name for path in made.path.parent.iterdir()] == [made.digest]


def test_equal_trees_are_packed_once_and_others_apart(tree, tmp_path):
    first = package.pack(tmp_path / "packages", tree)
    (first.path / "marker").write_text("")
    (tree / "gin" / "__pycache__" / "b.pyc").write_text("no part of it")
    assert package.pack(tmp_path / "packages", tree) == first and (first.path / "marker").exists()
    (tree / "gin" / "a.txt").write_text("edited")
    second = package.pack(tmp_path / "packages", tree)
    assert second.digest != first.digest and (first.path / "gin" / "a.txt").read_text() == "gin"


def test_recipes_are_named_as_in_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    inside = ROOT / "gin" / "recipes" / "quickstart.gin"
    assert package.packaged_name(str(inside)) == package.packaged_name("gin/recipes/quickstart.gin")
    assert package.packaged_name(str(inside)) == "gin/recipes/quickstart.gin"
    (tmp_path / "mine.gin").write_text("")
    with pytest.raises(BadInput, match="move it there"):
        package.packaged_name(str(tmp_path / "mine.gin"))
    with pytest.raises(BadInput, match="no gin file"):
        package.packaged_name("gin/recipes/nothing.gin")


def test_paths_in_bindings_are_whole(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    package.require_absolute([f"CORPUS='{tmp_path / 'corpus'}'", "CORPUS='elsewhere'", "SEED=1", "run.initial=None"])
    with pytest.raises(BadInput, match=f"give the absolute path, {re.escape(os.fspath(tmp_path / 'corpus'))}"):
        package.require_absolute(["SEED=1", "CORPUS='corpus'"])


def test_the_image_is_made_of_what_is_there(monkeypatch):
    text = (ROOT / "launch" / "Dockerfile").read_text()
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    extras = runpy.run_path(str(ROOT / "setup.py"))["EXTRAS"]
    [asked] = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert {*asked.split(",")} <= extras.keys()
    copied = re.search(r"^COPY (.+) \./$", text, flags=re.MULTILINE)
    assert copied and {*copied[1].split()} <= {*package.PARTS}
    kept = {line[1:] for line in (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    assert kept == {*package.PARTS} and all((ROOT / part).exists() for part in kept)
    assert re.search(r'ENTRYPOINT \["python", "(.+)"\]', text)[1] == str(pathlib.Path("launch") / "entry.py")
