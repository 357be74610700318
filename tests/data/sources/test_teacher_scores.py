"""Teacher scores of triplets: from a column of a file to the batch, with one line for every bad one."""

import dataclasses
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.tiny import tiny_vocabulary

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.batch_spec import TripletBatch
from pplx_jax.data.batches.gather import Gatherer
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources.seqio_corpus import SeqioCorpus
from pplx_jax.data.sources.seqio_tasks import source_task, tokenize_source
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.token_table import TokenTable

LENGTHS = Lengths(text=24, query=6, document=12, chunk=6, chunks=3)
WORDS = ("file", "index", "vector", "table")


def rows_of(count=6, **more):
    return [
        {
            "query": f"read {n}",
            "positive": f"open {n}",
            "negatives": [f"close {word} {n}" for word in WORDS[:3]],
            "label": [n + 0.5, -1.0 * n, n / 4, -2.0],
            **more,
        }
        for n in range(count)
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source_of(path, field="scores", **more):
    columns = {field: "label"} if field else {}
    return Source("taught", "triplet", str(path), **{"columns": columns, "negatives": 2, **more})


def read(source):
    bad = BadRows(source.name, source.max_bad_share)
    return [example for shard in source.shards() for example in source.examples(shard, bad)], bad


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_scores_are_those_of_the_negatives_that_are_used(ending, tmp_path):
    path = write(tmp_path / f"rows.{ending}", rows_of())
    found, _ = read(source_of(path))
    assert [example["scores"] for example in found] == [[n + 0.5, -1.0 * n, n / 4] for n in range(6)]
    assert [len(example["negatives"]) for example in found] == [2] * 6
    # Unnamed, the column is not read, whatever is in it.
    assert "scores" not in read(source_of(path, field=None))[0][0]
    assert "label" not in source_of(path, field=None).columns


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_margin_of_one_negative_is_a_number(ending, tmp_path):
    rows = [{"query": "q", "positive": "p", "negative": "n", "label": 3.25}]
    path = write(tmp_path / f"rows.{ending}", rows)
    columns = {"margins": "label", "negatives": "negative"}
    ((example,), _) = read(source_of(path, columns=columns, negatives=1))
    assert example["scores"] == [0.0, -3.25] and example["negatives"] == ["n"]


@pytest.mark.parametrize(
    "label, reason",
    [
        (None, "no label of type list of numbers"),
        ("3.5", "no label of type list of numbers"),
        ([1.0, None, 2.0, 3.0], "no label of type list of numbers"),
        ([True, 1.0, 2.0, 3.0], "no label of type list of numbers"),
        ([1.0, float("nan"), 2.0, 3.0], r"label is not finite \(got nan\)"),
        ([1.0, 2.0, 3.0, float("inf")], r"label is not finite \(got inf\)"),
        ([1.0, 2.0, 1e39, 3.0], r"label is not finite \(got 1e\+39\)"),
        (
            [1.0, 2.0, 3.0],
            r"wrong number of label \(got 3 for 3 negatives: give that of the positive, then of each neg",
        ),
        ([1.0] * 5, r"wrong number of label \(got 5 for 3 negatives"),
        ([], r"wrong number of label \(got 0 for 3 negatives"),
    ],
)
def test_a_row_without_good_scores_is_bad(label, reason, tmp_path):
    rows = rows_of(3)
    rows[1]["label"] = label
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(BadInput, match=rf"rows.jsonl:2: {reason}"):
        read(source_of(path))
    found, bad = read(source_of(path, max_bad_share=0.5))
    assert len(found) == 2 and bad.count == 1


def test_margins_are_as_many_as_negatives(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows_of())
    with pytest.raises(BadInput, match=r"wrong number of label \(got 4 for 3 negatives: give one for each negative\)"):
        read(source_of(path, field="margins"))


def test_declarations_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="names scores, and its kind is pair: a teacher's scores belong to triplets"):
        Source("x", "pair", "x.jsonl", columns={"scores": "label"})
    with pytest.raises(BadInput, match="names scores and margins; name one"):
        Source("x", "triplet", "x.jsonl", columns={"scores": "a", "margins": "b"})
    columns = {"scores": "label", "query": "inputs"}
    corpus = SeqioCorpus({"pair": "one", "triplet": "other"}, "evaluation", columns=columns)
    pair, triplet = corpus.training_sources(None)
    assert pair.columns == {"query": "inputs"} and triplet.columns == columns and triplet.has_scores


@pytest.mark.slow
def test_scores_reach_the_batch_through_seqio_and_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "RECORDS", 4)
    vocabulary = tiny_vocabulary(tmp_path)
    rows = rows_of()
    rows[2]["query"] = "\x07"  # a query without tokens: its row is left out
    path = write(tmp_path / "rows.jsonl", rows)
    tokenize_source(source_of(path), vocabulary, tmp_path / "table", LENGTHS)
    tokenize_source(source_of(path, field=None), vocabulary, tmp_path / "plain", LENGTHS)
    table, plain = (TokenTable.open(tmp_path / name, kind="triplet") for name in ("table", "plain"))
    kept = [n for n in range(6) if vocabulary.encode(rows[n]["query"])]
    wanted = np.array([rows[n]["label"][:3] for n in kept], np.float32)
    assert table["scores"].dtype == np.float32 and np.array_equal(table["scores"], wanted)
    assert table.digest != plain.digest and "scores" not in plain

    order = np.array([3, 0, 4])
    spec = TripletBatch(3, 64, slots=16, negatives=2, scores=True)
    assert np.array_equal(spec.pack(table, order, 3).arrays["scores"], wanted[order])
    assert np.array_equal(
        dataclasses.replace(spec, negatives=1).pack(table, order, 3).arrays["scores"], wanted[order, :2]
    )
    gathered = Gatherer([table, plain])(np.zeros(3, int), order)
    assert np.array_equal(spec.pack(gathered, np.arange(3), 3).arrays["scores"], wanted[order])
    mixed = Gatherer([table, plain])(np.array([0, 1, 0]), order)
    for one in (plain, mixed):
        with pytest.raises(BadInput, match="triplets without teacher scores, which the stage reads; name their column"):
            spec.pack(one, np.arange(3), 3)
    # Without a teacher a batch is the same with and without the column.
    bare = dataclasses.replace(spec, scores=False)
    ours, theirs = (bare.pack(one, order, 3).arrays for one in (table, plain))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)

    task = source_task(source_of(path), vocabulary)
    records = list(task.get_dataset(split="train", shuffle=False))
    assert [record["scores"].numpy().tolist() for record in records[:2]] == [[0.5, 0.0, 0.0], [1.5, -1.0, 0.25]]
    assert "scores" not in next(iter(source_task(source_of(path, field=None), vocabulary).get_dataset(split="train")))
