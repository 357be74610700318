"""Intervals and paired tests, against formulas and an enumeration of their own."""

import itertools

import numpy as np
import pytest

from pplx_jax.evaluation.core import significance
from pplx_jax.evaluation.core.significance import interval, paired_test, resampled_means


def test_resampled_means_spread_as_the_standard_error():
    values = np.random.default_rng(1).random(400)
    means = resampled_means(values, resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert means.std() == pytest.approx(error, rel=0.05)
    low, high = interval(means)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)


def test_columns_share_their_draws_and_digits_their_seed():
    values = np.random.default_rng(2).random(30)
    both = resampled_means(np.stack([values, 2 * values], axis=1))
    np.testing.assert_allclose(both[:, 1], 2 * both[:, 0])
    np.testing.assert_allclose(both[:, 0], resampled_means(values), rtol=1e-12)
    np.testing.assert_array_equal(resampled_means(values), resampled_means(values))
    assert not np.array_equal(both[:, 0], resampled_means(values, seed=1))


def exact_p(pairs):
    """Every way of swapping the two systems, query by query."""
    observed = abs(np.mean([np.mean(a - b) for a, b in pairs]))
    sizes = [len(a) for a, _ in pairs]
    hits = total = 0
    for swaps in itertools.product((1, -1), repeat=sum(sizes)):
        signs = np.split(np.array(swaps), np.cumsum(sizes)[:-1])
        statistic = abs(np.mean([np.mean(sign * (a - b)) for sign, (a, b) in zip(signs, pairs, strict=True)]))
        hits += statistic >= observed - 1e-12
        total += 1
    return hits / total


@pytest.fixture
def pairs():
    generator = np.random.default_rng(3)
    return [(generator.integers(0, 5, n) / 4 + 0.2, generator.integers(0, 5, n) / 4) for n in (4, 7)]


def test_few_queries_are_enumerated(pairs):
    found = paired_test(pairs)
    assert found.p == pytest.approx(exact_p(pairs), abs=1e-12)
    assert found.difference == pytest.approx(np.mean([np.mean(a - b) for a, b in pairs]))
    assert found.low < found.difference < found.high


def test_many_queries_are_sampled(pairs, monkeypatch):
    monkeypatch.setattr(significance, "_MOST_ENUMERATED", 0)
    found = paired_test(pairs)
    assert found.p == pytest.approx(exact_p(pairs), abs=0.02)
    assert found.p != exact_p(pairs)


def test_systems_that_differ_and_that_do_not():
    generator = np.random.default_rng(4)
    base = generator.random(200)
    assert paired_test([(base + 0.02, base)]).p < 0.001
    assert paired_test([(base, base)]) == significance.Difference(0.0, 0.0, 0.0, 1.0)
    noise = paired_test([(base + generator.normal(size=200), base)])
    assert noise.p > 0.05 and noise.low < 0 < noise.high
    with pytest.raises(ValueError, match="200 values against 3"):
        paired_test([(base, base[:3])])
