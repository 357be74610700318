"""How far a mean over queries can be trusted: bootstrap intervals, and paired tests between two systems.

Intervals are percentiles of means over queries drawn with replacement (Efron and Tibshirani, 1993); p values are those
of Fisher's randomisation test, which asks how often a difference as large appears where each query's two values
change sides at random (Smucker, Allan and Carterette, CIKM 2007). Both are seeded: equal values give equal digits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SEED = 0
LEVEL = 0.95
INTERVAL_RESAMPLES = 1000
TEST_RESAMPLES = 10_000
_MOST_ENUMERATED = 16  # queries that differ; 2 ** 16 assignments are looked at one by one
_ASSIGNMENTS_PER_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Difference:
    """A system against another on the same queries.

    Attributes:
        difference: of the means, first minus second.
        low, high: its 95% bootstrap interval.
        p: two-sided; the chance of a difference as large between systems that do not differ.
    """

    difference: float
    low: float
    high: float
    p: float


def resampled_means(
    values: np.ndarray, *, resamples: int = INTERVAL_RESAMPLES, seed: int | Sequence[int] = SEED
) -> np.ndarray:
    """Means over queries drawn with replacement, the same queries for every column.

    Args:
        values: [n] or [n, M], a row a query.
        resamples: how many means.
        seed: of the draws.

    Returns:
        float64 [resamples] or [resamples, M].
    """
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    count = len(values)
    draws = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(resamples))
    return np.stack([draw @ values / count for draw in draws])


def interval(means: np.ndarray) -> tuple[float, float]:
    """The bounds that the middle 95% of resampled means [resamples] lie within."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_test(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = TEST_RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Compares two systems by the weighted mean, over sets of queries, of each set's mean.

    Args:
        pairs: of every set the values [n] of the first system and of the second, query by query.
        weights: of the sets, with sum 1; equal where None.
        resamples: assignments drawn where there are too many to look at each.
        seed: of the draws.

    Raises:
        ValueError: two arrays of a set differ in length.
    """
    for first, second in pairs:
        if len(first) != len(second):
            raise ValueError(f"{len(first)} values against {len(second)}: pairs are of the same queries")
    differences = [np.asarray(first, np.float64) - np.asarray(second, np.float64) for first, second in pairs]
    weights = [1 / len(pairs)] * len(pairs) if weights is None else weights
    weighted = list(zip(weights, differences, strict=True))
    means = [weight * resampled_means(one, seed=[seed, place]) for place, (weight, one) in enumerate(weighted)]
    shares = np.concatenate([weight * one / len(one) for weight, one in weighted])
    shares = shares[shares != 0]
    p = _enumerated(shares) if len(shares) <= _MOST_ENUMERATED else _sampled(shares, resamples, seed)
    return Difference(float(shares.sum()), *interval(np.sum(means, axis=0)), p)


def _enumerated(shares: np.ndarray) -> float:
    assignments = np.arange(1 << len(shares))[:, None] >> np.arange(len(shares)) & 1
    return float(_as_large(assignments, shares).mean())


def _sampled(shares: np.ndarray, resamples: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    hits, left = 0, resamples
    while left:
        block = min(left, max(_ASSIGNMENTS_PER_BLOCK // len(shares), 1))
        hits += int(_as_large(generator.integers(2, size=(block, len(shares)), dtype=np.int8), shares).sum())
        left -= block
    return (hits + 1) / (resamples + 1)  # what was observed is one of the assignments


def _as_large(assignments: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """bool [assignments]: whether the sum with these signs (0 or 1 each) is as far from 0 as the one observed."""
    sums = (2.0 * assignments - 1.0) @ shares
    return np.abs(sums) >= abs(shares.sum()) * (1 - 1e-9)
