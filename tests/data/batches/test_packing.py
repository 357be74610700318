"""Packing: each token in exactly one place, whole texts, bounded slots, shortening if there is too little space."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.packing import pack, shorten


def lay_out(packed, rows, length):
    """Chunk and position within the text of every cell, by walking chunk after chunk; -1 where free."""
    chunk_at = np.full((rows, length), -1)
    position_at = np.full((rows, length), -1)
    for chunk, kept in enumerate(packed.kept):
        for token in range(kept):
            cell = packed.row[chunk], packed.column[chunk] + token
            assert chunk_at[cell] == -1, "two tokens in one place"
            chunk_at[cell] = chunk
            position_at[cell] = packed.position[chunk] + token
    return chunk_at, position_at


def check(lengths, counts, packed, rows, length, slots):
    """All that holds of every packing, checked in plain loops."""
    lengths, counts = np.asarray(lengths), np.asarray(counts)
    assert np.all((packed.row >= 0) & (packed.row < rows))
    assert np.all((packed.kept <= lengths) & (packed.kept >= np.minimum(lengths, 1)))
    assert packed.cut_tokens == (lengths - packed.kept).sum()
    assert np.all(packed.column + packed.kept <= length)
    chunk_at, position_at = lay_out(packed, rows, length)

    first = 0
    cells = []
    for count in counts:
        chunks = range(first, first + count)
        first += count
        assert len({packed.row[c] for c in chunks}) == 1 and len({packed.segment[c] for c in chunks}) == 1
        start = packed.column[chunks[0]] - packed.position[chunks[0]]
        assert packed.position[chunks[0]] == 0
        for before, after in zip(chunks, chunks[1:], strict=False):
            assert packed.slot[after] == packed.slot[before] + 1
            # One place is left for the separator, and no chunk lies in it.
            assert packed.column[after] == packed.column[before] + packed.kept[before] + 1
            assert chunk_at[packed.row[after], packed.column[after] - 1] == -1
        for c in chunks:
            assert packed.column[c] - packed.position[c] == start
        end = packed.column[chunks[-1]] + packed.kept[chunks[-1]]
        cells.append((packed.row[chunks[0]], start, end, packed.segment[chunks[0]]))
        positions = position_at[packed.row[chunks[0]], start:end]
        assert np.all((positions == np.arange(end - start)) | (positions == -1))

    for row in range(rows):
        texts = sorted(cell[1:] for cell in cells if cell[0] == row)
        assert [segment for _, _, segment in texts] == list(range(1, len(texts) + 1))
        assert [start for start, _, _ in texts] == [0, *(end for _, end, _ in texts)][: len(texts)]  # no gaps
        taken = sorted(packed.slot[packed.row == row])
        assert taken == list(range(len(taken))) and len(taken) <= slots


texts_strategy = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), min_size=1, max_size=40)


@given(texts_strategy, st.integers(32, 64), st.integers(4, 12), st.integers(0, 6))
def test_invariants(texts, length, slots, spare_rows):
    counts = [len(text) for text in texts]
    lengths = np.concatenate(texts)
    rows = max(1, -(-len(lengths) // max(slots - 3, 1)) + spare_rows)  # tokens may or may not fit
    packed = pack(lengths, counts, rows=rows, length=length, slots=slots)
    check(lengths, counts, packed, rows, length, slots)
    again = pack(lengths, counts, rows=rows, length=length, slots=slots)
    assert all(np.array_equal(getattr(packed, name), getattr(again, name)) for name in vars(packed))


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_nothing_is_cut_when_every_text_could_have_its_own_row(lengths):
    packed = pack(lengths, rows=len(lengths), length=32, slots=60)
    assert packed.cut_tokens == 0
    used = packed.row.max() + 1
    # Best-fit decreasing needs at most 11/9 of the optimum and a row more.
    assert used <= 11 / 9 * np.ceil(max(sum(lengths) / 32, sum(n > 16 for n in lengths))) + 2


def test_fill_of_a_realistic_batch():
    generator = np.random.default_rng(0)
    documents = np.minimum(generator.lognormal(4.4, 0.6, 512).astype(int) + 1, 192)
    lengths = np.concatenate([generator.integers(4, 30, 512), documents])
    rows = int(np.ceil(lengths.sum() / 256 / 0.99))
    packed = pack(lengths, rows=rows, length=256, slots=48)
    assert packed.cut_tokens == 0
    assert lengths.sum() / (rows * 256) > 0.985


def test_overflow_shortens_the_longest_and_only_as_much_as_needed():
    generator = np.random.default_rng(1)
    lengths = np.concatenate([generator.integers(4, 20, 300), generator.integers(60, 192, 300)])
    rows = int(lengths.sum() * 0.97 / 256)
    packed = pack(lengths, rows=rows, length=256, slots=64)
    assert packed.cut_tokens == lengths.sum() - packed.kept.sum()
    assert packed.kept.sum() > 0.995 * rows * 256  # what is cut found no place
    assert packed.kept[:300].sum() > 0.995 * lengths[:300].sum()  # queries stay as they are
    cut = lengths - packed.kept
    assert cut[lengths > packed.kept.max()].sum() > 0.9 * cut.sum()


def test_windows_of_row_length_lose_little():
    """Texts of more than half a row cannot share one: a text too many must not halve all the others."""
    lengths = np.array([256] * 60 + [200] * 40 + [40] * 30)
    packed = pack(lengths, rows=99, length=256, slots=8)
    assert packed.cut_tokens <= 200


def test_a_text_longer_than_a_row_is_shortened_alone():
    packed = pack([100, 7, 100, 20, 20], [3, 1, 1], rows=3, length=64, slots=4)
    check([100, 7, 100, 20, 20], [3, 1, 1], packed, 3, 64, 4)
    assert packed.kept[1] == 7 and packed.kept[3:].tolist() == [20, 20]
    assert packed.kept[[0, 2]].tolist() == [28, 27]  # 64 places less 2 separators and 7 tokens


def test_separators_take_places():
    packed = pack([3, 2, 4], [3], rows=1, length=11, slots=3)
    assert packed.cut_tokens == 0 and packed.column.tolist() == packed.position.tolist() == [0, 4, 7]
    assert pack([3, 2, 4], [3], rows=1, length=10, slots=3).cut_tokens == 1  # control: one place less


def test_slots_bind_before_tokens():
    packed = pack([1] * 12, rows=3, length=100, slots=4)
    assert np.bincount(packed.row).tolist() == [4, 4, 4]
    # A text of several chunks passes over a fuller row whose slots are taken.
    packed = pack([50, 10, 10, 10], [1, 1, 2], rows=2, length=80, slots=2)
    assert packed.row[2] == packed.row[3] != packed.row[0] == packed.row[1]
    assert packed.cut_tokens == 0


@pytest.mark.parametrize(
    "lengths, counts, rows, length, slots",
    [
        ([1] * 13, None, 3, 100, 4),  # slots
        ([1] * 6, [3, 3], 3, 100, 2),  # a text of more chunks than slots
        ([1] * 9, None, 1, 8, 16),  # tokens: not one each
        ([9] * 6, [6], 1, 10, 16),  # separators
    ],
)
def test_what_cannot_fit_is_refused(lengths, counts, rows, length, slots):
    with pytest.raises(BadInput, match="packing: .*; give"):
        pack(lengths, counts, rows=rows, length=length, slots=slots)


def test_empty_texts_keep_their_slot():
    packed = pack([0, 5, 0], rows=2, length=5, slots=3)
    check([0, 5, 0], [1, 1, 1], packed, 2, 5, 3)
    assert pack([], rows=2, length=5, slots=3).row.shape == (0,)


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(-5, 300))
def test_shorten_takes_from_the_longest_and_no_more_than_needed(lengths, room):
    lengths = np.array(lengths, np.int64)
    kept = shorten(lengths, room)
    assert kept.sum() == min(lengths.sum(), max(room, 0))
    cut = kept < lengths
    if cut.any():
        assert np.ptp(kept[cut]) <= 1  # one common length, or one more
        assert kept[~cut].max(initial=0) <= kept[cut].min() + 1


def test_two_thousand_texts_pack_in_milliseconds():
    generator = np.random.default_rng(0)
    lengths = np.concatenate([generator.integers(4, 30, 1000), generator.integers(20, 192, 1000)])
    rows = int(np.ceil(lengths.sum() / 256 / 0.98))
    times = []
    for _ in range(5):
        started = time.process_time()
        pack(lengths, rows=rows, length=256, slots=48)
        times.append(time.process_time() - started)
    assert min(times) < 0.01
