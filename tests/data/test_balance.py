"""Dealing keeps examples and groups, and evens out what bins hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.data.balance import bin_size, deal


@given(st.integers(1, 400), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9))
def test_a_window_keeps_its_examples_and_every_place_its_group(count, groups, size, seed):
    generator = np.random.default_rng(seed)
    group, lengths = generator.integers(0, groups, count), generator.integers(1, 500, count)
    dealt = deal(group, lengths, size)
    assert np.array_equal(np.sort(dealt), np.arange(count))
    assert np.array_equal(group[dealt], group)
    assert np.array_equal(dealt, deal(group, lengths, size))


def test_bins_hold_about_as_much():
    generator = np.random.default_rng(0)
    group = generator.integers(0, 3, 4096)
    lengths = (generator.lognormal(4, 1, 4096) * (1 + group)).astype(int)
    loads = lengths[deal(group, lengths, 64)].reshape(-1, 64).sum(axis=1)
    before = lengths.reshape(-1, 64).sum(axis=1)
    assert loads.std() < before.std() / 10


@pytest.mark.parametrize("batch_size", [1, 4, 24, 64, 97, 256, 1000, 4096, 16384])
def test_bins_divide_a_batch(batch_size):
    size = bin_size(batch_size)
    assert batch_size % size == 0 and (size >= 16 or size == batch_size) and batch_size // size <= 256
