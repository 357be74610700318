"""The order of examples: a permutation in every pass, well mixed, the same wherever a stream is resumed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.data.batches.order import shuffled


@given(st.integers(1, 3000), st.integers(-5, 2**70), st.integers(0, 50))
def test_every_pass_is_a_permutation(count, seed, epoch):
    order = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed)
    assert np.array_equal(np.sort(order), np.arange(count))


def test_places_are_independent_of_each_other():
    whole = shuffled(np.arange(1000), 123, 5)
    for places in ([999, 0, 17], [4], np.arange(100, 300)):
        np.testing.assert_array_equal(shuffled(np.array(places), 123, 5), whole[places])


def test_large_tables_are_reached_at_once():
    count = 10**12
    order = shuffled(np.arange(10_000) + 7 * count, count, 0)
    assert len(np.unique(order)) == 10_000
    assert abs(order.mean() / count - 0.5) < 0.02 and order.max() < count


def test_the_order_is_well_mixed():
    count = 4096
    orders = np.array([shuffled(np.arange(count) + epoch * count, count, seed)
                       for seed in (0, 1) for epoch in (0, 1)])  # fmt: skip
    places = np.arange(count)
    for order in orders:
        assert abs(np.corrcoef(places, order)[0, 1]) < 0.06
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
        # Neighbours stay neighbours no more often than chance (2 in n), fixed points are about one.
        assert (np.abs(np.diff(order)) == 1).sum() < 12 and (order == places).sum() < 8
    for one in range(4):
        for other in range(one):
            assert (orders[one] == orders[other]).sum() < 8 and abs(np.corrcoef(orders[[one, other]])[0, 1]) < 0.06
    # Negative control: the statistics do see an order that is not mixed.
    assert np.corrcoef(places, np.roll(places, 100))[0, 1] > 0.06


@pytest.mark.parametrize("count", [5, 10, 40])
def test_every_example_comes_first_equally_often(count):
    first = np.concatenate([shuffled(np.array([0]), count, seed) for seed in range(200 * count)])
    counts = np.bincount(first, minlength=count)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < count + 5 * np.sqrt(2 * count)


def test_small_tables_see_many_orders():
    orders = {tuple(shuffled(np.arange(4), 4, seed)) for seed in range(1000)}
    assert len(orders) == 24
