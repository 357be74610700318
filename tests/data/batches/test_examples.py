"""The stream over several tables: shares, curricula, resuming, hosts, and batches equal to those of one table."""

import dataclasses
import types

import numpy as np
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches import packed_batch as features
from pplx_jax.data.batches.examples import Examples
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table

B = 32


def pair_table(folder, name, count, seed, shards=1):
    """Pairs whose query is (number of the table, number of the row)."""
    vocabulary = types.SimpleNamespace(fingerprint="f", size=1000, pad_id=0, mask_id=1, separator_id=2)
    generator = np.random.default_rng(seed)
    lengths = np.minimum(generator.lognormal(2.5, 0.8, count).astype(int) + 1, 90)
    for shard, rows in enumerate(np.array_split(np.arange(count), shards)):
        columns = {
            "query": Ragged.from_arrays([[10 + seed, 100 + row] for row in rows]),
            "document": Ragged.from_arrays([np.full(lengths[row], 10 + seed) for row in rows]),
            "document_hash": rows.astype(np.int32),
            "source": np.zeros(len(rows), np.int32),
        }
        where = folder / name if shards == 1 else folder / name / f"shard-{shard:05d}-of-{shards:05d}"
        write_table(where, "pair", vocabulary, columns, notes={"sources": [name]})


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for seed, (name, count, shards) in enumerate([("a", 700, 1), ("b", 300, 3), ("c.x", 200, 1), ("c.y", 100, 1)]):
        pair_table(folder, name, count, seed, shards)
    return open_tables(folder)


MIXED = Mixture({"a": 0.5, "b": 0.3, "c": 0.2})
ONE_SOURCE = dataclasses.replace(MIXED, batches="one_source")
CURRICULUM = Curriculum([Mixture({"a": 1.0}), ONE_SOURCE, MIXED], [5, 6])


def ids(examples, step):
    selection = examples.select(step * B + np.arange(B))
    return list(zip(examples.names(selection), selection.row.tolist(), strict=True))


@pytest.mark.parametrize("data", [None, MIXED, ONE_SOURCE, CURRICULUM], ids=["all", "mixed", "one", "curriculum"])
def test_each_pass_over_a_table_reads_every_row_once(tables, data):
    examples = Examples(tables, data, B, seed=3)
    read = {name: [] for name in tables}
    steps = 200
    for step in range(steps):
        for name, row in ids(examples, step):
            read[name].append(row)
    counted = examples.read_before(steps * B)
    for name, shards in tables.items():
        count = sum(table.count for table in shards)
        assert len(read[name]) == counted[name]
        often = np.bincount(read[name], minlength=count)
        # rows of one pass are dealt within a window, so the last window may be under way
        assert often.max() - often.min() <= 1, name


def test_shares_hold_in_every_batch_and_over_any_window(tables):
    examples = Examples(tables, MIXED, B, seed=0)
    names = np.array([[name for name, _ in ids(examples, step)] for step in range(40)])
    shares = {"a": 0.5, "b": 0.3, "c.x": 0.1, "c.y": 0.1}
    for first in range(0, 40, 7):
        for last in range(first + 1, 41, 5):
            window = names[first:last]
            for name, share in shares.items():
                assert abs((window == name).sum() - share * window.size) < 2 + 4 * window.size / 16384


def test_one_source_a_batch(tables):
    examples = Examples(tables, ONE_SOURCE, B, seed=0)
    batches = [{name for name, _ in ids(examples, step)} for step in range(50)]
    assert all(len(names) == 1 for names in batches)
    counts = {name: sum(name in names for names in batches) for name in tables}
    assert counts == {"a": 25, "b": 15, "c.x": 5, "c.y": 5}


def test_a_curriculum_changes_its_mixture_on_the_step_and_goes_on_where_a_source_was_left(tables):
    examples = Examples(tables, CURRICULUM, B, seed=0)
    assert all(name == "a" for step in range(5) for name, _ in ids(examples, step))
    assert all(len({name for name, _ in ids(examples, step)}) == 1 for step in range(5, 11))
    assert len({name for name, _ in ids(examples, 11)}) == 4
    seen = [row for step in range(11) for name, row in ids(examples, step) if name == "a"]
    assert len(seen) == len(set(seen)) < 700  # nothing twice before the first pass is over


@pytest.mark.parametrize("data", [None, MIXED, ONE_SOURCE, CURRICULUM], ids=["all", "mixed", "one", "curriculum"])
def test_held_out_rows_are_in_no_pass(tables, data):
    examples = Examples(tables, data, B, seed=3, held_out=40)
    read = {example for step in range(200) for example in ids(examples, step)}
    everything = {(name, row) for name in tables for row in range(sum(table.count for table in tables[name]))}
    held_out = {(name, int(row)) for name in tables for row in examples.held_out(name)}
    assert len(held_out) == 40 * len(tables) and read == everything - held_out  # several passes over each table
    assert examples.count == len(read)
    assert not {(name, row) for name in tables for row in examples.unread(name, 3)} & held_out
    whole = Examples(tables, data, B, seed=3)
    assert {example for step in range(200) for example in ids(whole, step)} == everything  # control


def test_held_out_rows_of_a_sharded_table_are_its_last_ones(tables):
    examples = Examples({"b": tables["b"]}, None, B, seed=3, held_out=150)  # of three shards of 100
    assert {row for step in range(30) for _, row in ids(examples, step)} == set(range(150))
    rows = examples.held_out("b")
    assert examples.table("b", rows)["query"][0].tolist() == [11, 250]
    np.testing.assert_array_equal(examples.are_read(np.array([0, 149, 150, 299])), [True, True, False, False])
    for held_out, batch_size in ((151, B), (20, 281)):  # fewer would be left than held out, or than a batch has
        small = Examples({"b": tables["b"]}, None, batch_size, seed=3, held_out=held_out)
        assert small.count == 300 and len(small.held_out("b")) == 0


@pytest.mark.parametrize("data", [None, MIXED, ONE_SOURCE, CURRICULUM], ids=["all", "mixed", "one", "curriculum"])
def test_unread_rows_are_those_no_batch_held(tables, data):
    examples = Examples(tables, data, B, seed=1)
    for steps in (0, 3, 12, 17):
        held = {example for step in range(steps) for example in ids(examples, step)}
        for name, shards in tables.items():
            count = sum(table.count for table in shards)
            unread = examples.unread(name, steps)
            if examples.read_before(steps * B)[name] < count:
                assert sorted(unread) == [row for row in range(count) if (name, row) not in held], (name, steps)


@given(st.integers(0, 10**6), st.sampled_from([None, MIXED, ONE_SOURCE, CURRICULUM]))
@settings(max_examples=10)
def test_resumed_anywhere_and_read_in_parts(tables, step, data):
    """A fresh stream gives at once what stands at a far place, whole or in parts."""
    whole = ids(Examples(tables, data, B, seed=2), step)
    for parts in (2, 4):
        read = []
        for places in np.split(step * B + np.arange(B), parts):
            stream = Examples(tables, data, B, seed=2)
            selection = stream.select(places)
            read += zip(stream.names(selection), selection.row.tolist(), strict=True)
        assert read == whole
    assert whole != ids(Examples(tables, data, B, seed=7), step)  # negative control: another seed


def test_batches_are_full_of_the_selected_texts(tables):
    size = 128
    spec = dataclasses.replace(tiny.STAGES["pair"], batch_size=size, row_length=96, slots=64).batch
    examples = Examples(tables, Mixture({"a": 0.6, "b": 0.4}), size, seed=0)
    sequences = examples.sequences(spec, multiple_of=1)
    fills, cut, tokens = [], 0, 0
    for step in range(12):
        selection = examples.select(step * size + np.arange(size))
        packed = examples.pack(spec, selection, sequences[selection.group])
        fills.append(packed.metrics["fill"])
        cut, tokens = cut + packed.metrics["cut_tokens"], tokens + packed.metrics["tokens"]
        named = zip(packed.arrays["query"], examples.names(selection), selection.row, strict=True)
        for (row, slot), name, number in named:
            assert text_at(packed.arrays, row, slot) == [10 + sorted(tables).index(name), 100 + number]
    assert np.mean(fills) > 0.95 and cut / tokens < 0.01


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_gathered_batches_are_those_of_the_tables(stage, tmp_path_factory):
    """Of every stage, out of two copies of one table: the arrays of a batch are what the table itself would give."""
    folder = tmp_path_factory.mktemp("copies")
    vocabulary = tiny.tiny_vocabulary(folder)
    table = tiny.tiny_tables(folder, vocabulary)[stage]
    size = tiny.STAGES[stage].batch_size
    examples = Examples({"one": [table], "two": [table]}, Mixture({"one": 1.0}), size, seed=0)
    selection = examples.select(np.arange(size))
    packed = examples.pack(tiny.STAGES[stage].batch, selection, 12)
    direct = tiny.STAGES[stage].batch.pack(table, selection.row, 12)
    for name in ("query", "document", "negatives", "chunks"):
        if name not in direct.arrays:
            continue
        for one, other in zip(packed.arrays[name].reshape(-1, 2), direct.arrays[name].reshape(-1, 2), strict=True):
            assert (one[0] < 0) == (other[0] < 0)
            if one[0] >= 0:
                assert text_at(packed.arrays, *one) == text_at(direct.arrays, *other)
    for name in ("document_hash", "chunk"):
        if name in direct.arrays:
            assert np.array_equal(packed.arrays[name], direct.arrays[name])
    assert sorted(texts_of(packed.arrays)) == sorted(texts_of(direct.arrays))


def text_at(arrays, row, slot):
    return arrays["tokens"][row][arrays["chunk_ids"][row] == slot + 1].tolist()


def texts_of(arrays):
    return [
        tokens[segments == segment].tolist()
        for tokens, segments in zip(arrays["tokens"], arrays["segment_ids"], strict=True)
        for segment in np.unique(segments[segments > 0])
    ]


def test_temperature_flattens_shares():
    examples = {"big": 9000, "small": 1000}
    ones = dict.fromkeys(examples, 1.0)
    assert Mixture().shares(examples, ones) == pytest.approx({"big": 0.9, "small": 0.1})
    assert Mixture(temperature=2.0).shares(examples, ones) == pytest.approx({"big": 0.75, "small": 0.25})
    weighed = Mixture({"x": 1.0, "y": 3.0}).shares({"x.de": 5, "x.fr": 5, "y": 1}, {"x.de": 3.0, "x.fr": 1.0, "y": 1.0})
    assert weighed == pytest.approx({"x.de": 0.1875, "x.fr": 0.0625, "y": 0.75})


def test_what_cannot_be_read(tables):
    with pytest.raises(BadInput, match="no token files of 'd'; there are a, b, c.x, c.y"):
        Examples(tables, Mixture({"d": 1.0}), B, seed=0)
    with pytest.raises(BadInput, match="c.y: 100 examples, a batch wants 128 of them"):
        Examples(tables, ONE_SOURCE, 128, seed=0)
    with pytest.raises(BadInput, match="give the steps"):
        Curriculum([MIXED], [5])
    with pytest.raises(BadInput, match="not above 0"):
        Mixture(temperature=0.0)


def test_a_diffusion_row_of_several_texts_keeps_them_apart():
    vocabulary = {"fingerprint": "f", "size": 99, "pad_id": 0, "mask_id": 1, "separator_id": 2}
    tokens = Ragged.from_arrays([[5, 5, 5, 6, 6, 7], [8, 8, 9, 9, 9, 9], [4, 4]])
    texts = Ragged.from_arrays([[3, 2, 1], [2, 4], [2]])
    manifest = {"stage": "diffusion", "count": 3, "vocabulary": vocabulary}
    table = TokenTable({"tokens": tokens, "text_lengths": texts}, manifest, None)
    arrays = features.text_batch(table, np.arange(3), sequences=2, length=8).arrays
    found = texts_of(arrays)
    assert sorted(found) == [[4, 4], [5, 5, 5], [6, 6], [7], [8, 8], [9, 9, 9, 9]]
    for row in range(2):
        for segment in np.unique(arrays["segment_ids"][row][arrays["segment_ids"][row] > 0]):
            here = arrays["segment_ids"][row] == segment
            assert arrays["positions"][row][here].tolist() == list(range(here.sum()))
    assert len(arrays["segment_ids"][arrays["segment_ids"] > 0]) == 14
