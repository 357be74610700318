"""Finds texts that are nearly equal, with MinHash over runs of words.

The share of equal minima of two texts estimates the share of runs that they have in common (Broder, "On the resemblance
and containment of documents", 1997). Only texts that share a band of minima are compared (Indyk and Motwani, 1998).
"""

import zlib
from collections.abc import Iterable

import numpy as np

from pplx_jax.data.sources.overlap import words_of

_WORDS = 5  # words of a run
_BANDS, _ROWS = (
    16,
    4,
)  # texts that share 50% of their runs meet with probability 64%, 80%: 99.98%
_PRIME = np.uint64((1 << 31) - 1)


class NearDuplicates:
    """Texts so far, by MinHash signature.

    Args:
        threshold: the smallest share of common runs that makes two texts nearly equal.
        seed: seed of the hash functions.
    """

    def __init__(self, threshold: float = 0.8, seed: int = 0):
        generator = np.random.default_rng(seed)
        self._factors, self._offsets = generator.integers(1, int(_PRIME), (2, _BANDS * _ROWS, 1), np.uint64)
        self._threshold = threshold
        self._signatures: list[np.ndarray] = []
        self._bands: list[dict[bytes, int]] = [{} for _ in range(_BANDS)]

    def add(self, texts: Iterable[str]) -> int | None:
        """Adds the texts of one example, and returns the number of an earlier nearly equal one, or None."""
        signature = self._signature(" ".join(texts))
        keys = [part.tobytes() for part in signature.reshape(_BANDS, _ROWS)]
        candidates = {band[key] for band, key in zip(self._bands, keys, strict=True) if key in band}
        likeness = {one: float(np.mean(self._signatures[one] == signature)) for one in sorted(candidates)}
        best = max(likeness, key=likeness.__getitem__, default=None)
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, len(self._signatures))
        self._signatures.append(signature)
        return best if best is not None and likeness[best] >= self._threshold else None

    def _signature(self, text: str) -> np.ndarray:
        words = words_of(text)
        runs = {" ".join(words[place : place + _WORDS]) for place in range(max(1, len(words) - _WORDS + 1))}
        hashes = np.array([zlib.crc32(run.encode()) for run in runs], np.uint64) % _PRIME
        # Products of numbers below 2^31 are below 2^62.
        return ((self._factors * hashes + self._offsets) % _PRIME).min(axis=1).astype(np.uint32)
