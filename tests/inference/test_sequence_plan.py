"""Sequences for inference: every text is in one, none is too long, and little of them is padding."""

import numpy as np
import pytest

from pplx_jax.inference.sequence_plan import plan_sequences, shortest_sequence

LIMIT, SLOTS = 8192, 64
MIXES = {
    "uniform": lambda generator: generator.integers(0, 513, 9000),
    "documents": lambda generator: np.clip(generator.lognormal(5.3, 0.8, 3000), 1, LIMIT),
    "any": lambda generator: np.exp(generator.uniform(np.log(8), np.log(LIMIT), 2000)),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("mix", MIXES)
def test_every_text_is_in_one_sequence_and_sequences_are_full(mix, platform):
    generator = np.random.default_rng(0)
    sizes = MIXES[mix](generator).astype(np.int64)
    counts = np.where(np.arange(len(sizes)) % 50 == 7, np.minimum(sizes, 100), 1).clip(1)
    texts = np.flatnonzero(np.arange(len(sizes)) % 11)  # only some texts are planned
    cells, seen, shortest = 0, [], shortest_sequence(platform)
    for plan in plan_sequences(texts, sizes, counts, limit=LIMIT, slots=SLOTS, shortest=shortest):
        number = plan.sequence.max() + 1
        assert plan.length >= shortest
        assert (np.diff(plan.sequence) >= 0).all()
        assert np.bincount(plan.sequence, sizes[plan.texts]).max() <= plan.length <= LIMIT
        assert np.bincount(plan.sequence, counts[plan.texts]).max() <= plan.slots
        assert plan.slots == SLOTS or counts[plan.texts].max() > SLOTS
        cells += number * plan.length
        seen.append(plan.texts)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), texts)
    assert sizes[texts].sum() > 0.93 * cells


def test_a_limit_that_is_no_power_of_two_is_the_longest_sequence():
    (plan,) = plan_sequences(np.arange(1), np.array([300]), np.array([1]), limit=300, slots=SLOTS, shortest=256)
    assert (plan.length, plan.slots) == (300, SLOTS)
    (plan,) = plan_sequences(np.arange(1), np.array([0]), np.array([1]), limit=100, slots=SLOTS, shortest=256)
    assert plan.length == 100
