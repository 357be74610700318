"""Rows for inference: every text once, none too long, and nearly no room wasted."""

import numpy as np
import pytest

from pplx_jax.inference.row_plan import plan_rows

LIMIT, SLOTS = 8192, 64
MIXES = {
    "uniform": lambda generator: generator.integers(0, 513, 9000),
    "documents": lambda generator: np.clip(generator.lognormal(5.3, 0.8, 3000), 1, LIMIT),
    "any": lambda generator: np.exp(generator.uniform(np.log(8), np.log(LIMIT), 2000)),
}


@pytest.mark.parametrize("mix", MIXES)
def test_every_text_is_in_one_row_and_rows_are_full(mix):
    generator = np.random.default_rng(0)
    sizes = MIXES[mix](generator).astype(np.int64)
    counts = np.where(np.arange(len(sizes)) % 50 == 7, np.minimum(sizes, 100), 1).clip(1)
    texts = np.flatnonzero(np.arange(len(sizes)) % 11)  # some are none of its business
    cells, seen = 0, []
    for rows in plan_rows(texts, sizes, counts, limit=LIMIT, slots=SLOTS):
        number = rows.row.max() + 1
        assert (np.diff(rows.row) >= 0).all()
        assert np.bincount(rows.row, sizes[rows.texts]).max() <= rows.length <= LIMIT
        assert np.bincount(rows.row, counts[rows.texts]).max() <= rows.slots
        assert rows.slots == SLOTS or counts[rows.texts].max() > SLOTS
        cells += number * rows.length
        seen.append(rows.texts)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), texts)
    assert sizes[texts].sum() > 0.93 * cells


def test_a_limit_that_is_no_power_of_two_is_the_longest_row():
    (rows,) = plan_rows(np.arange(1), np.array([300]), np.array([1]), limit=300, slots=SLOTS)
    assert (rows.length, rows.slots) == (300, SLOTS)
    (rows,) = plan_rows(np.arange(1), np.array([0]), np.array([1]), limit=100, slots=SLOTS)
    assert rows.length == 100
