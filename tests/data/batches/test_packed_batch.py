"""Packed batches: every reference leads to the tokens of the table, and every token belongs to a reference."""

import dataclasses
import types

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.batch_spec import ContextualBatch, PairBatch, TextBatch, TripletBatch
from pplx_jax.data.batches.packed_batch import (
    contextual_batch,
    pair_batch,
    sequences_needed,
    text_batch,
    triplet_batch,
)
from pplx_jax.data.tokens.kinds import KIND_OF_FOLDER
from pplx_jax.data.tokens.ragged import Ragged, ranges
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table

ROWS, LENGTH, SLOTS, C = 16, 64, 24, 4
INDICES = np.array([3, 41, 7, 0, 59, 22, 23, 24, 11, 30])
PAD, SEPARATOR = 0, 3
# Stands for a Vocabulary where only its ids matter.
VOCABULARY = types.SimpleNamespace(
    fingerprint="5eed" * 16, size=1000, pad_id=0, mask_id=2, separator_id=3, path="stub.model"
)


def random_texts(generator: np.random.Generator, lengths) -> Ragged:
    return Ragged.from_arrays([generator.integers(4, VOCABULARY.size, length) for length in lengths])


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, TokenTable]:
    """A random table of every stage, by stage: 60 examples (contextual: 60 queries of 25 documents)."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tables")
    count, documents = 60, 25
    pair = {
        "query": random_texts(generator, generator.integers(1, 9, count)),
        "document": random_texts(generator, generator.integers(5, 40, count)),
        "document_hash": generator.integers(-(2**31), 2**31, count).astype(np.int32),
        "source": generator.integers(0, 3, count).astype(np.int32),
    }
    negatives = [generator.choice(np.delete(np.arange(count), row), 4, replace=False) for row in range(count)]
    chunk_counts = generator.integers(1, 5, documents)
    chunk_counts[0] = 4  # the longest document, with an empty chunk
    chunk_lengths = generator.integers(1, 15, chunk_counts.sum())
    chunk_lengths[1] = 0
    document = generator.integers(0, documents, count).astype(np.int32)
    features = {
        "diffusion": {"tokens": random_texts(generator, generator.integers(3, 33, count))},
        "pair": pair,
        "triplet": {**pair, "negatives": np.array(negatives, np.int32)},
        "contextual": {
            "query": random_texts(generator, generator.integers(1, 9, count)),
            "document": document,
            "chunk": generator.integers(0, chunk_counts[document]).astype(np.int32),
            "document_hash": (document * 7919).astype(np.int32),
            "chunks": random_texts(generator, chunk_lengths),
            "chunks_of_document": np.concatenate([[0], np.cumsum(chunk_counts)]),
        },
    }
    for stage in features:
        write_table(folder / stage, KIND_OF_FOLDER[stage], VOCABULARY, features[stage])
    return {stage: TokenTable.open(folder / stage, kind=KIND_OF_FOLDER[stage]) for stage in features}


def pooled_tokens(arrays, reference):
    """Tokens that pooling averages for a (row, slot) reference, straight from chunk_ids."""
    row, slot = reference
    return arrays["tokens"][row][arrays["chunk_ids"][row] == slot + 1].tolist()


def segment_of(arrays, reference):
    row, slot = reference
    return arrays["segment_ids"][row][arrays["chunk_ids"][row] == slot + 1]


def check_rows(arrays, rows=ROWS, length=LENGTH):
    """What the model takes for granted of every batch."""
    for name in ("tokens", "segment_ids", "positions", "chunk_ids"):
        assert arrays[name].shape == (rows, length) and arrays[name].dtype == np.int32
    padding = arrays["segment_ids"] == 0
    for name in ("positions", "chunk_ids"):
        assert not arrays[name][padding].any()
    assert np.all(arrays["tokens"][padding] == PAD)
    for row in range(rows):
        segments, positions = arrays["segment_ids"][row], arrays["positions"][row]
        used = segments[segments > 0]
        assert np.array_equal(segments[: len(used)], used)  # padding at the end alone
        assert np.all(np.diff(used) >= 0) and set(used) == set(range(1, len(set(used)) + 1))
        for segment in set(used):
            place = np.flatnonzero(segments == segment)
            assert np.array_equal(positions[place], np.arange(len(place)))
            assert np.array_equal(place, np.arange(place[0], place[-1] + 1))


def test_diffusion_rows_hold_every_text_once(tables):
    table = tables["diffusion"]
    arrays, metrics = text_batch(table, INDICES, sequences=ROWS, length=LENGTH)
    check_rows(arrays)
    np.testing.assert_array_equal(arrays["chunk_ids"], arrays["segment_ids"])
    found = [
        arrays["tokens"][row][arrays["segment_ids"][row] == segment].tolist()
        for row in range(ROWS)
        for segment in range(1, arrays["segment_ids"][row].max() + 1)
    ]
    assert sorted(found) == sorted(table["tokens"][index].tolist() for index in INDICES)
    tokens = sum(map(len, found))
    assert metrics == {"fill": tokens / (ROWS * LENGTH), "tokens": tokens, "cut_tokens": 0}


def test_pair_references_lead_to_query_and_document(tables):
    table = tables["pair"]
    arrays, metrics = pair_batch(table, INDICES, sequences=ROWS, length=LENGTH, slots=SLOTS)
    check_rows(arrays)
    np.testing.assert_array_equal(arrays["chunk_ids"], arrays["segment_ids"])
    for place, index in enumerate(INDICES):
        assert pooled_tokens(arrays, arrays["query"][place]) == table["query"][index].tolist()
        assert pooled_tokens(arrays, arrays["document"][place]) == table["document"][index].tolist()
    np.testing.assert_array_equal(arrays["document_hash"], table["document_hash"][INDICES])
    references = np.concatenate([arrays["query"], arrays["document"]])
    assert len(np.unique(references, axis=0)) == 2 * len(INDICES)
    assert all(array.dtype == np.int32 for array in arrays.values())
    assert metrics["cut_tokens"] == 0 and metrics["tokens"] == (arrays["segment_ids"] > 0).sum()
    # Negative control: the references of a neighbour do not lead to the same text.
    assert pooled_tokens(arrays, arrays["query"][1]) != table["query"][INDICES[0]].tolist()


def test_pair_references_count_rows_from_the_first_row(tables):
    shape = {"sequences": ROWS, "length": LENGTH, "slots": SLOTS}
    here = pair_batch(tables["pair"], INDICES, **shape).arrays
    there = pair_batch(tables["pair"], INDICES, **shape, first_sequence=100).arrays
    np.testing.assert_array_equal(there["query"] - here["query"], [[100, 0]] * len(INDICES))
    np.testing.assert_array_equal(there["tokens"], here["tokens"])


@pytest.mark.parametrize("negatives", [None, 2])
def test_triplet_references_and_shared_documents(tables, negatives):
    table = tables["triplet"]
    # The negatives of examples stand in the batch with their own queries: many documents have several roles.
    indices = np.unique(np.concatenate([INDICES[:4], table["negatives"][INDICES[:4]].ravel()]))
    arrays, metrics = triplet_batch(table, indices, sequences=80, length=LENGTH, slots=SLOTS, negatives=negatives)
    check_rows(arrays, rows=80)
    width = negatives or 4
    assert arrays["negatives"].shape == (len(indices), width, 2)
    role = {}
    for place, index in enumerate(indices):
        assert pooled_tokens(arrays, arrays["query"][place]) == table["query"][index].tolist()
        assert pooled_tokens(arrays, arrays["document"][place]) == table["document"][index].tolist()
        role.setdefault(index, set()).add(tuple(arrays["document"][place].tolist()))
        for rank in range(width):
            negative = table["negatives"][index, rank]
            reference = arrays["negatives"][place, rank]
            assert pooled_tokens(arrays, reference) == table["document"][negative].tolist()
            role.setdefault(negative, set()).add(tuple(reference.tolist()))
    assert all(len(references) == 1 for references in role.values())  # one copy of each document
    unique_tokens = sum(len(table["document"][row]) for row in role)
    assert metrics["tokens"] == unique_tokens + sum(len(table["query"][row]) for row in indices)


def test_more_negatives_than_mined_are_refused(tables):
    with pytest.raises(BadInput, match="4 negatives an example, the stage wants 5; mine more"):
        triplet_batch(tables["triplet"], INDICES, sequences=80, length=LENGTH, slots=SLOTS, negatives=5)


def test_contextual_documents_are_chunks_joined_by_separators(tables):
    table = tables["contextual"]
    document_of_example = np.asarray(table["document"])
    twins = np.flatnonzero(document_of_example == document_of_example[INDICES[0]])
    indices = np.unique(np.concatenate([INDICES, twins, np.flatnonzero(document_of_example == 0)]))
    assert len(np.unique(document_of_example[indices])) < len(indices)  # some documents have several queries
    arrays, metrics = contextual_batch(table, indices, sequences=ROWS, length=LENGTH, slots=SLOTS, chunks=C)
    check_rows(arrays)
    assert arrays["chunks"].shape == (len(indices), C, 2)
    packed = {}
    for place, index in enumerate(indices):
        assert pooled_tokens(arrays, arrays["query"][place]) == table["query"][index].tolist()
        document = document_of_example[index]
        first, last = table["chunks_of_document"][document : document + 2]
        references = arrays["chunks"][place]
        packed.setdefault(document, set()).add(references.tobytes())
        assert np.all(references[last - first :] == -1) and np.all(references[: last - first] >= 0)
        for rank, chunk in enumerate(range(first, last)):
            assert pooled_tokens(arrays, references[rank]) == table["chunks"][chunk].tolist()
        # The whole segment, read in order, is the document: chunks with a separator between neighbours.
        row = references[0, 0]
        segment = next(s[0] for r in references[: last - first] if len(s := segment_of(arrays, r)))
        inside = arrays["segment_ids"][row] == segment
        text = []
        for chunk in range(first, last):
            text += ([SEPARATOR] if chunk > first else []) + table["chunks"][chunk].tolist()
        assert arrays["tokens"][row][inside].tolist() == text
        separators = inside & (arrays["chunk_ids"][row] == 0)
        assert arrays["tokens"][row][separators].tolist() == [SEPARATOR] * (last - first - 1)
        assert 0 <= arrays["chunk"][place] < last - first
    assert all(len(copies) == 1 for copies in packed.values())
    np.testing.assert_array_equal(arrays["chunk"], table["chunk"][indices])
    np.testing.assert_array_equal(arrays["document_hash"], table["document_hash"][indices])
    assert metrics["cut_tokens"] == 0


def test_documents_of_too_many_chunks_are_refused(tables):
    everything = np.arange(tables["contextual"].count)
    with pytest.raises(BadInput, match="document of 4 chunks in a batch of 3"):
        contextual_batch(tables["contextual"], everything, sequences=60, length=LENGTH, slots=SLOTS, chunks=3)


def test_cut_tokens_are_counted_and_only_tails_are_cut(tables):
    table = tables["pair"]
    arrays, metrics = pair_batch(table, INDICES, sequences=3, length=LENGTH, slots=SLOTS)
    check_rows(arrays, rows=3)
    lost = 0
    for place, index in enumerate(INDICES):
        for name in ("query", "document"):
            kept, whole = pooled_tokens(arrays, arrays[name][place]), table[name][index].tolist()
            assert kept == whole[: len(kept)] and len(kept) > 0
            lost += len(whole) - len(kept)
    assert metrics["cut_tokens"] == lost > 0
    assert metrics["fill"] == 1.0


def test_shapes_depend_on_the_arguments_alone(tables):
    generator = np.random.default_rng(0)
    shapes = set()
    for _ in range(5):
        indices = generator.choice(60, 10, replace=False)
        arrays = contextual_batch(
            tables["contextual"], indices, sequences=ROWS, length=LENGTH, slots=SLOTS, chunks=C
        ).arrays
        shapes.add(tuple((name, array.shape) for name, array in arrays.items()))
    assert len(shapes) == 1


@pytest.fixture(scope="module")
def large():
    generator = np.random.default_rng(0)
    count = 3000
    lengths = {
        "query": generator.integers(4, 30, count),
        "document": np.minimum(generator.lognormal(4.4, 0.6, count).astype(int) + 1, 192),
    }
    arrays = {name: Ragged.from_lengths(np.ones(sum(n), np.int32), n) for name, n in lengths.items()}
    arrays["document_hash"] = np.arange(count, dtype=np.int32)
    manifest = {"count": count, "stage": "pair", "vocabulary": {"pad_id": 0, "separator_id": 3}}
    return TokenTable(arrays, manifest, "large")


def test_sequences_needed_fill_up_and_seldom_cut(large):
    spec = PairBatch(512, 256, slots=64)
    sequences = spec.sequences_needed(large)
    generator = np.random.default_rng(7)
    shape = {"length": 256, "slots": 64}
    batches = [
        pair_batch(large, generator.choice(3000, 512, replace=False), sequences=sequences, **shape).metrics
        for _ in range(30)
    ]
    assert 0.97 < np.mean([metrics["fill"] for metrics in batches]) < 0.995
    assert np.mean([metrics["cut_tokens"] > 0 for metrics in batches]) < 0.45
    cut = sum(metrics["cut_tokens"] for metrics in batches) / sum(metrics["tokens"] for metrics in batches)
    assert cut < 0.01
    # Negative control: a tenth fewer sequences cut every batch.
    fewer = pair_batch(large, np.arange(512), sequences=int(sequences * 0.9), **shape)
    assert fewer.metrics["cut_tokens"] > 0


SPECS = {
    "diffusion": TextBatch(8, LENGTH),
    "pair": PairBatch(8, LENGTH, SLOTS),
    "triplet": TripletBatch(8, LENGTH, SLOTS, negatives=4),
    "contextual": ContextualBatch(8, LENGTH, SLOTS, chunks=C),
}


@pytest.mark.parametrize("name", SPECS)
def test_sequences_needed_of_every_spec(tables, name):
    table, spec = tables[name], SPECS[name]
    needed = spec.sequences_needed(table, multiple_of=4)
    assert needed % 4 == 0 and needed == spec.sequences_needed(table, multiple_of=4)
    few = {"length": LENGTH, "slots": SLOTS, "multiple_of": 4}
    assert needed <= sequences_needed(table, spec.texts, 8, **few, deviations=6)
    # With few slots the number of texts, not of tokens, sets the number of sequences.
    long = dataclasses.replace(spec, length=2000, slots=None)
    assert dataclasses.replace(long, slots=5).sequences_needed(table) > long.sequences_needed(table)
    assert dataclasses.replace(spec, microbatches=3).sequences_needed(table, multiple_of=2) % 6 == 0
    with pytest.raises(BadInput, match="lower the batch size"):
        dataclasses.replace(spec, batch_size=61).sequences_needed(table)


def test_ranges():
    values = ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert values.tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], int), np.array([], int)).shape == (0,)
