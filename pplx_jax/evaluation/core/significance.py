"""Statistical significance of means over queries: bootstrap intervals, and paired tests between two systems.

Intervals are percentiles of means over queries drawn with replacement (Efron and Tibshirani, 1993). P values come from
Fisher's randomisation test: how often a difference is at least as large if the two values of each query are swapped at
random (Smucker, Allan and Carterette, CIKM 2007). Both are seeded, so equal values give equal digits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SEED = 0
LEVEL = 0.95
INTERVAL_RESAMPLES = 1000
TEST_RESAMPLES = 10_000
_MOST_ENUMERATED = 16  # queries with a difference; up to here all assignments are enumerated
_ASSIGNMENTS_PER_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between two systems on the same queries.

    Attributes:
        difference: of the means, first minus second.
        low, high: its 95% bootstrap interval.
        p: two-sided; the probability of a difference at least as large if the systems were equal.
    """

    difference: float
    low: float
    high: float
    p: float


def resampled_means(
    values: np.ndarray, *, resamples: int = INTERVAL_RESAMPLES, seed: int | Sequence[int] = SEED
) -> np.ndarray:
    """Returns means over queries drawn with replacement. All columns use the same draws.

    Args:
        values: [n] or [n, M], one row per query.
        resamples: number of means.
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
    """Returns the bounds of the middle 95% of resampled means [resamples]."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def seeded_interval(
    differences: np.ndarray, *, resamples: int = INTERVAL_RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of a mean over queries and training seeds.

    Queries and seeds are drawn with replacement, independently. All drawn seeds have the same queries, because their
    values of one query are not independent. With few seeds the interval underestimates what another seed changes.

    Args:
        differences: [seeds, queries], of two systems on the same queries.
        resamples: number of draws.
        seed: of the draws.
    """
    differences = np.asarray(differences, np.float64)
    seeds, queries = differences.shape
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        of_seeds = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds) / seeds
        of_queries = np.bincount(generator.integers(queries, size=queries), minlength=queries) / queries
        means.append(of_seeds @ differences @ of_queries)
    return interval(np.array(means))


def paired_interval(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float] | None = None, *, seed: int = SEED
) -> tuple[float, float, float]:
    """Returns the difference of two systems and the bounds of its 95% interval. Arguments are those of `paired_test`.

    Raises:
        ValueError: the two arrays of a set differ in length.
    """
    weighted = _weighted_differences(pairs, weights)
    means = [weight * resampled_means(one, seed=[seed, place]) for place, (weight, one) in enumerate(weighted)]
    return sum(weight * float(one.mean()) for weight, one in weighted), *interval(np.sum(means, axis=0))


def _weighted_differences(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float] | None
) -> list[tuple[float, np.ndarray]]:
    for first, second in pairs:
        if len(first) != len(second):
            raise ValueError(f"{len(first)} values against {len(second)}: both systems need the same queries")
    differences = [np.asarray(first, np.float64) - np.asarray(second, np.float64) for first, second in pairs]
    weights = [1 / len(pairs)] * len(pairs) if weights is None else weights
    return list(zip(weights, differences, strict=True))


def paired_test(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = TEST_RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Compares two systems by the weighted mean of their means over several sets of queries.

    Args:
        pairs: for each set, the values [n] of the first and of the second system, in the same query order.
        weights: of the sets, with sum 1; None for equal weights.
        resamples: number of random assignments, if there are too many to enumerate.
        seed: of the draws.

    Raises:
        ValueError: the two arrays of a set differ in length.
    """
    weighted = _weighted_differences(pairs, weights)
    _, low, high = paired_interval(pairs, weights, seed=seed)
    shares = np.concatenate([weight * one / len(one) for weight, one in weighted])
    shares = shares[shares != 0]
    p = _enumerated(shares) if len(shares) <= _MOST_ENUMERATED else _sampled(shares, resamples, seed)
    return Difference(float(shares.sum()), low, high, p)


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
    return (hits + 1) / (resamples + 1)  # the observed assignment counts as one


def _as_large(assignments: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns bool [assignments]: whether the sum with these signs (0 or 1) is at least as far from 0 as observed."""
    sums = (2.0 * assignments - 1.0) @ shares
    return np.abs(sums) >= abs(shares.sum()) * (1 - 1e-9)
