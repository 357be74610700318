"""Which rows are in which shard: by rows or by bytes, over the ends of files, and reading only what is wanted."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.embeddings import shard_plan
from pplx_jax.retrieval.embeddings.shard_plan import plan_shards


def write(path, texts):
    if path.suffix == ".parquet":
        table = pyarrow.table({"text": texts, "other": ["x" * 5000] * len(texts)})
        pyarrow.parquet.write_table(
            table, path, row_group_size=3 if len(texts) < 10 else 30, use_dictionary=False, compression="none"
        )
    else:
        content = "\n" + "".join(json.dumps({"text": text}) + "\n" for text in texts)  # the first line is blank
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.fixture
def files(tmp_path):
    texts = [[f"{name}{n}" for n in range(count)] for name, count in (("a", 5), ("b", 0), ("c", 7), ("d", 4))]
    names = ("a.jsonl", "b.jsonl", "c.parquet", "d.jsonl.gz")
    return [write(tmp_path / name, each) for name, each in zip(names, texts, strict=True)]


ALL = [*(f"a{n}" for n in range(5)), *(f"c{n}" for n in range(7)), *(f"d{n}" for n in range(4))]


def read(plan, wanted=None):
    wanted = range(len(plan.shards)) if wanted is None else wanted
    return [[row.chunks[0] for row in rows] for _, rows in plan.read("text", "chunks", wanted)]


def test_shards_of_rows_go_over_the_ends_of_files(files):
    plan = plan_shards(files, "text", "chunks", 4)
    assert plan.rows == 16 and read(plan) == [ALL[begin : begin + 4] for begin in range(0, 16, 4)]
    assert read(plan, {3, 1}) == [ALL[4:8], ALL[12:16]]


def test_every_row_has_its_own_number_and_place(files):
    plan = plan_shards(files, "text", "chunks", 16)
    ((_, rows),) = plan.read("text", "chunks", [0])
    numbers = [row.number for row in rows]
    assert numbers == sorted(set(numbers)) and [row.id for row in rows] == [str(number) for number in numbers]
    assert plan.where(numbers[0]) == f"{files[0]}, line 2"  # after the blank line
    assert [plan.where(numbers[place]) for place in (5, 11)] == [f"{files[2]}, line {line}" for line in (1, 7)]
    assert plan.line(numbers[12]) == f"line 2 of {files[3]}"
    assert plan_shards(files[:1], "text", "chunks").line(3) == "line 3"


def test_files_without_wanted_rows_are_not_read(files):
    plan = plan_shards(files, "text", "chunks", 4)
    files[0].unlink(), files[2].unlink()
    assert read(plan, [3]) == [ALL[12:]]
    with pytest.raises(BadInput, match=r"cannot read .*c\.parquet"):
        read(plan, [2])


def test_a_file_that_shrank_is_named(files):
    plan = plan_shards(files, "text", "chunks", 4)
    write(files[3], ["d0"])
    with pytest.raises(BadInput, match=r"d\.jsonl\.gz has fewer rows than before"):
        read(plan, [3])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_shards_have_about_equal_bytes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(shard_plan, "SHARD_BYTES", 20_000)
    path = write(tmp_path / name, ["short"] * 60 + ["long " * 800] * 30)  # 4,000 bytes of each long one
    plan = plan_shards([path], "text", "chunks")
    counts = [shard.rows for shard in plan.shards]
    assert sum(counts) == 90 and all(20_000 <= shard.weight < 26_000 for shard in plan.shards[:-1])
    assert 17 <= counts[0] <= 20 and 4 <= counts[-2] <= 5
    assert [text for shard in read(plan) for text in shard] == ["short"] * 60 + ["long " * 800] * 30


def test_a_large_input_has_no_more_than_some_thousand_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_BYTES", 1)  # a row
    monkeypatch.setattr(shard_plan, "MOST_SHARDS", 10)
    plan = plan_shards([write(tmp_path / "a.jsonl", ["text"] * 31)], "text", "chunks")
    assert [shard.rows for shard in plan.shards] == [4] * 7 + [3]
    by_rows = plan_shards([tmp_path / "a.jsonl"], "text", "chunks", 1)
    assert len(by_rows.shards) == 31


def test_a_hundred_million_vectors_are_some_thousand_files():
    shards = shard_plan._Shards(None)
    for _ in range(100):  # row groups of a million rows of 500 bytes
        shards.add(1_000_000, 500)
    planned = shards.joined()
    assert 1000 < len(planned) <= 2000 and sum(shard.rows for shard in planned) == 100_000_000


def test_the_digest_is_that_of_the_files_in_order(files):
    one, two = plan_shards(files[:1], "text", "chunks"), plan_shards(files, "text", "chunks")
    other = plan_shards(files[::-1], "text", "chunks")
    assert len({plan.sha256() for plan in (one, two, other)}) == 3
