"""The files of an input: one order on disks and in buckets, folders and patterns, and what is refused."""

import pytest

from pplx_jax.core.buckets import cache_folder
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.input_files import input_files, matching_paths

NAMES = [
    "a/part-10.jsonl",
    "a/part-2.jsonl.gz",
    "a-b.parquet",
    "b.jsonl",
    "notes.txt",
    "_SUCCESS",
    ".b.jsonl.tmp.jsonl",
]
ROWS = ["a-b.parquet", "a/part-10.jsonl", "a/part-2.jsonl.gz", "b.jsonl"]  # "-" is before "/"


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
    root = tmp_path / "set" if request.param == "disk" else request.getfixturevalue("bucket") / "set"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def found(path):
    files = input_files(path)
    if str(path).startswith("gs:"):
        assert all(file.is_relative_to(cache_folder()) for file in files)
    return [file.read_text() for file in files]


def test_a_folder_names_its_rows_in_the_order_of_their_paths(root):
    assert found(root) == found(str(root)) == ROWS


def test_a_pattern_names_what_matches(root):
    assert found(root / "*.jsonl") == ["b.jsonl"]
    assert found(root / "a*") == ROWS[:3]  # a folder that matches names its rows
    assert found(root / "**" / "*.jsonl") == ["a/part-10.jsonl", "b.jsonl"]
    assert found(root / "notes*") == ["notes.txt"]
    assert [path.name for path in matching_paths(root / "a*")] == ["a", "a-b.parquet"]


def test_one_file_is_itself(root):
    assert found(root / "notes.txt") == ["notes.txt"]


def test_a_file_with_the_name_of_a_pattern_is_no_pattern(tmp_path):
    (tmp_path / "a[1].jsonl").write_text("one")
    assert found(tmp_path / "a[1].jsonl") == ["one"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("*.csv", r"\*\.csv: no file or folder matches this pattern; check it, and put it in quotes"),
        ("empty", r"empty: no file in this folder ends in \.jsonl, \.jsonl\.gz, \.parquet; give"),
        ("em*", r"em\*: no file matches this pattern, and no folder that does has files in \.jsonl"),
    ],
)
def test_an_empty_match_is_one_line(root, name, told):
    (root / "empty").mkdir()
    (root / "empty" / "notes.md").write_text("")
    with pytest.raises(BadInput, match=told) as refused:
        input_files(root / name)
    assert "\n" not in str(refused.value)
