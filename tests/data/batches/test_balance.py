"""Dealing keeps examples and groups, and evens out the tokens of bins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.data.batches.balance import bin_size, deal


@given(st.integers(1, 400), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9))
def test_a_window_keeps_its_examples_and_every_place_its_group(count, groups, size, seed):
    generator = np.random.default_rng(seed)
    group, lengths = generator.integers(0, groups, count), generator.integers(1, 500, count)
    keys, batch_size = generator.integers(0, 50, count), size * (seed + 1)
    dealt = deal(group, lengths, keys, size, batch_size)
    assert np.array_equal(np.sort(dealt), np.arange(count))
    assert np.array_equal(group[dealt], group)
    assert np.array_equal(dealt, deal(group, lengths, keys, size, batch_size))


def test_bins_hold_about_as_much():
    generator = np.random.default_rng(0)
    group = generator.integers(0, 3, 4096)
    lengths = (generator.lognormal(4, 1, 4096) * (1 + group)).astype(int)
    dealt = deal(group, lengths, np.arange(4096), 16, 64)
    loads = lengths[dealt].reshape(-1, 64).sum(axis=1)
    before = lengths.reshape(-1, 64).sum(axis=1)
    assert loads.std() < before.std() / 10


def test_queries_of_one_document_go_to_different_batches():
    generator = np.random.default_rng(0)
    documents = generator.integers(0, 200, 2048)  # about ten queries each, in 32 batches of 64
    lengths = generator.integers(100, 4000, 200)[documents] + generator.integers(5, 60, 2048)
    dealt = deal(np.zeros(2048, int), lengths, documents, 16, 64)

    def together(order):
        return sum(64 - len(np.unique(batch)) for batch in documents[order].reshape(-1, 64))

    assert together(np.arange(2048)) > 200 and together(dealt) < 40
    loads = lengths[dealt].reshape(-1, 64).sum(axis=1)
    assert loads.std() < 0.01 * loads.mean()


def test_another_order_is_dealt_otherwise():
    """Two passes over one table that fit a window: most pairs of a batch are not together again."""
    generator = np.random.default_rng(0)
    lengths, pairs = generator.integers(1, 5000, 512), []
    for _ in range(2):
        order = generator.permutation(512)
        dealt = order[deal(np.zeros(512, int), lengths[order], order, 16, 32)]
        batch = np.empty(512, int)
        batch[dealt] = np.arange(512) // 32
        pairs.append(batch[:, None] == batch)
    again = (pairs[0] & pairs[1]).sum() - 512
    assert again < 0.25 * (pairs[0].sum() - 512)


@pytest.mark.parametrize("batch_size", [1, 4, 24, 64, 97, 256, 1000, 4096, 16384])
def test_bins_divide_a_batch(batch_size):
    size = bin_size(batch_size)
    assert batch_size % size == 0 and (size >= 16 or size == batch_size) and batch_size // size <= 256
