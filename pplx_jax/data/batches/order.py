"""A stateless shuffled order: which example is at a place of the endless stream.

The order depends only on the seed and the number of examples, so a run resumes at any place at once. The method is
that of levanter `data/_prp.py` (a pseudo-random permutation instead of a shuffled index).
"""

import math

import numpy as np

_ROUNDS = 8


def shuffled(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the examples at places of the endless shuffled stream, in time and memory independent of `count`.

    Each pass of `count` places is a separate permutation of `range(count)`: a Feistel network over the least
    a x b >= count with modular addition (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), with
    cycle walking for the few values beyond `count`.

    Args:
        places: [n] integers >= 0.
        count: examples in one pass.
        seed: any integer.

    Returns:
        int64 [n], in [0, count).
    """
    epochs, values = np.divmod(np.asarray(places, np.uint64), np.uint64(count))
    side = math.isqrt(count - 1) + 1
    sides = np.uint64(side), np.uint64(-(-count // side))
    keys = _mix(_mix(np.full(1, seed % 2**64, np.uint64)) + epochs)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], keys[walking], sides)
        walking = walking[values[walking] >= count]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, sides: tuple[np.uint64, np.uint64]) -> np.ndarray:
    halves = [values % sides[0], values // sides[0]]
    for step in range(_ROUNDS):
        near, far = step % 2, 1 - step % 2
        halves[near] = (halves[near] + _mix(halves[far] + _mix(keys + np.uint64(step))) % sides[near]) % sides[near]
    return halves[1] * sides[0] + halves[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
