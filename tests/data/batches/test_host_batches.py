"""The rows that a process packs: the same for any number of processes, and every reference at its place."""

import numpy as np
import pytest
from helpers import tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.examples import Examples, Selection
from pplx_jax.data.batches.host_batches import BatchReader, Share, own_share

BATCH = 8


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return tiny.tiny_tables(folder, tiny.tiny_vocabulary(folder))


def reader_of(stage, table, *arguments, **keywords) -> BatchReader:
    return BatchReader(stage, Examples({"": [table]}, None, BATCH, seed=0), *arguments, **keywords)


def rows_of(indices: np.ndarray) -> Selection:
    """Examples of the one table."""
    return Selection(np.zeros(len(indices), int), indices, 0)


def stage(name: str, **fields):
    return type(tiny.STAGES[name])(**{**vars(tiny.STAGES[name]), "batch_size": BATCH, **fields})


@pytest.mark.parametrize("name", tiny.STAGES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_shares_put_together_are_the_batch_of_one_process(tables, name, count):
    indices = np.random.default_rng(1).permutation(tiny.EXAMPLES)[:BATCH]
    whole = reader_of(stage(name), tables[name], Share(0, 1), groups=4, row_shards=8)(rows_of(indices))
    readers = [
        reader_of(stage(name), tables[name], Share(index, count), groups=4, row_shards=8) for index in range(count)
    ]
    parts = [reader(rows_of(share)) for reader, share in zip(readers, np.split(indices, count), strict=True)]
    assert len(whole.arrays["tokens"]) % 8 == 0
    for key, array in whole.arrays.items():
        np.testing.assert_array_equal(np.concatenate([part.arrays[key] for part in parts]), array, err_msg=key)
    for key in ("tokens", "cut_tokens", "token_pairs"):
        assert sum(part.metrics[key] for part in parts) == whole.metrics[key]


@pytest.mark.parametrize("name", ["pair", "triplet", "contextual"])
def test_references_find_their_texts_among_all_rows(tables, name):
    """The query that a reference points at is the one that the table has."""
    table, indices = tables[name], np.arange(BATCH)
    arrays = reader_of(stage(name), table, Share(0, 1), groups=2, row_shards=1)(rows_of(indices)).arrays
    for example, (row, slot) in zip(indices, arrays["query"], strict=True):
        own = arrays["tokens"][row][arrays["chunk_ids"][row] == slot + 1]
        start, stop = table["query"].offsets[example : example + 2]
        np.testing.assert_array_equal(own, table["query"].values[start:stop][: len(own)])


def test_pairs_of_tokens_are_squares_of_lengths(tables):
    packed = reader_of(stage("diffusion"), tables["diffusion"], Share(0, 1), 1, 1)(rows_of(np.arange(BATCH)))
    segments = packed.arrays["segment_ids"]
    lengths = [np.bincount(row, minlength=2)[1:] for row in segments]
    assert packed.metrics["token_pairs"] == sum(int(np.sum(row.astype(int) ** 2)) for row in lengths)


def test_shares_that_groups_do_not_divide_are_packed_apart_and_said_so(tables, caplog):
    reader = reader_of(stage("pair"), tables["pair"], Share(0, 4), groups=2, row_shards=4)
    assert "packed in 4 groups instead of 2" in caplog.text and "Training.packing_groups=4" in caplog.text
    assert len(reader(rows_of(np.arange(2))).arrays["query"]) == 2


def test_a_batch_that_does_not_divide_is_bad_input(tables):
    with pytest.raises(BadInput, match="batch of 8 cannot be packed in 3 equal groups"):
        reader_of(stage("pair"), tables["pair"], Share(0, 1), groups=3, row_shards=1)


class Held:
    """A sharding of which this process holds the given rows."""

    def __init__(self, *rows: tuple[int, int]):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {device: (slice(*rows), slice(None)) for device, rows in enumerate(self.rows)}


@pytest.mark.parametrize(
    "held, share",
    [
        ([(0, 4), (4, 8)], Share(0, 1)),
        ([(4, 6), (6, 8)], Share(1, 2)),
        ([(4, 6), (4, 6)], Share(2, 4)),  # a mesh axis that rows are not spread over
        ([(None, None)], Share(0, 1)),
    ],
)
def test_the_rows_of_its_devices_are_a_processs_share(held, share):
    assert own_share(Held(*held), (8, 3)) == share


@pytest.mark.parametrize(
    "held, message", [([(0, 2), (4, 6)], "do not lie together"), ([], "has no device in the mesh")]
)
def test_rows_that_make_no_share_are_bad_input(held, message):
    with pytest.raises(BadInput, match=message):
        own_share(Held(*held), (8, 3))
