"""Turns: sources have their shares of any window within the bound of the algorithm, at any place of the schedule."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.data.batches.schedule import CYCLE, Turns

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@given(WEIGHTS, st.integers(0, 10 * CYCLE), st.integers(0, 2 * CYCLE))
def test_shares_hold_over_any_window(weights, start, size):
    turns = Turns(weights)
    had = (turns.before(np.array([start + size])) - turns.before(np.array([start])))[0]
    assert had.sum() == size
    assert np.abs(had - size * turns.shares).max() < 2
    wanted = np.array(weights) / sum(weights)
    # a tiny weight is raised to one turn a cycle, which the others make room for
    assert np.abs(turns.shares - wanted).max() * turns.cycle <= len(weights)


def test_every_prefix_is_within_one_turn():
    for weights in ([1, 1], [0.5] + [0.5 / 29] * 29, [65.6, 6.7, 1, 26.7]):
        turns = Turns(weights)
        places = np.arange(turns.cycle + 1)
        off = np.abs(turns.before(places) - places[:, None] * turns.shares).max()
        assert off <= 1 - 1 / (2 * len(weights) - 2) + 1e-9


def test_a_drawn_schedule_fails_the_same_bound():
    """Negative control: independent draws with these weights are many turns off."""
    drawn = np.random.default_rng(0).random(CYCLE) < 0.5
    assert np.abs(np.cumsum(drawn) - 0.5 * np.arange(1, CYCLE + 1)).max() > 10


@given(st.integers(0, 10**15))
def test_places_far_away_agree_with_their_neighbours(start):
    turns = Turns([3, 1, 2])
    places = start + np.arange(100)
    source, before = turns.source(places), turns.before(places)
    taken = source[:, None] == np.arange(3)
    assert np.array_equal(before[1:] - before[:-1], taken[:-1])
    assert np.array_equal(turns.rank(places), before[np.arange(100), source])
