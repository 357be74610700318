"""A deterministic order in which several sources take turns, so that each source has its share of any window.

The chairman assignment of Tijdeman ("The chairman assignment problem", Discrete Mathematics 32, 1980): after any number
n of turns, a source of weight w has had n w turns with an error below one. One cycle of turns is computed and repeats
forever, so any place of the endless schedule is reached at once.
"""

import functools
from collections.abc import Sequence

import numpy as np

CYCLE = 1 << 14  # turns per cycle; a weight is rounded to half a turn of it


class Turns:
    """The endless schedule of some weights.

    Attributes:
        shares: of each source, its share of the turns of a cycle: int64 [K] / `cycle`.
        cycle: length of the cycle.
    """

    def __init__(self, weights: Sequence[float]):
        """Computes one cycle.

        Args:
            weights: of each source, above 0; only their proportions matter.
        """
        self.cycle = CYCLE if len(weights) > 1 else 1
        self._counts = _whole_shares(np.asarray(weights, np.float64), self.cycle)
        self.shares = self._counts / self.cycle
        self._source = np.array(_chairmen(tuple(self._counts.tolist())), np.int64)
        # before[p, k]: turns of source k in the first p turns of a cycle
        taken = self._source[:, None] == np.arange(len(self._counts))
        self._before = np.concatenate([np.zeros((1, len(self._counts)), np.int64), np.cumsum(taken, axis=0)])

    def source(self, places: np.ndarray) -> np.ndarray:
        """Returns the source that has the turn at each place: int64 [n]."""
        return self._source[np.asarray(places, np.int64) % self.cycle]

    def before(self, places: np.ndarray) -> np.ndarray:
        """Returns the turns that each source had before each place: int64 [n, K]."""
        cycles, rest = np.divmod(np.asarray(places, np.int64), self.cycle)
        return cycles[:, None] * self._counts + self._before[rest]

    def rank(self, places: np.ndarray) -> np.ndarray:
        """Returns the turns before each place of the source that has the turn there: int64 [n]."""
        before = self.before(places)
        return np.take_along_axis(before, self.source(places)[:, None], axis=1)[:, 0]


def _whole_shares(weights: np.ndarray, cycle: int) -> np.ndarray:
    """Returns integers in these proportions that sum to `cycle`: largest remainders, at least one each."""
    exact = weights / weights.sum() * cycle
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    order = np.argsort(counts - exact, kind="stable")
    missing = cycle - int(counts.sum())
    if missing > 0:
        counts[order[:missing]] += 1
    while missing < 0:  # tiny weights were raised to one turn
        counts[np.argmax(counts - exact)] -= 1
        missing += 1
    return counts


@functools.lru_cache(maxsize=64)
def _chairmen(counts: tuple[int, ...]) -> list[int]:
    """Returns the source of every turn of one cycle.

    Of the sources that may take a turn without getting ahead by more than allowed, the one whose next turn is due
    first takes it. All arithmetic is in integers, so that every machine computes the same cycle.
    """
    total, sources = sum(counts), len(counts)
    if sources == 1:
        return [0] * total
    slack = 2 * sources - 2
    taken = [0] * sources
    turns = []
    for place in range(1, total + 1):
        best, best_due = -1, (0, 1)
        for source, count in enumerate(counts):
            # at turn `place` the source is owed place * count / total - taken turns; it must be at least 1 / slack
            if slack * (place * count - taken[source] * total) < total:
                continue
            # its next turn is due when count * t / total reaches taken + 1 - 1 / slack
            due = (taken[source] + 1) * slack - 1, count
            if best < 0 or due[0] * best_due[1] < best_due[0] * due[1]:
                best, best_due = source, due
        taken[best] += 1
        turns.append(best)
    return turns
