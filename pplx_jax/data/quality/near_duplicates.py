"""Texts that are nearly the same: MinHash over runs of words, and only texts that share a band are compared.

Broder ("On the resemblance and containment of documents", 1997): the share of equal minima of two texts is an estimate
of the share of runs they have in common. Indyk and Motwani (1998): bands of minima find likely pairs without comparing
all.
"""

import zlib
from collections.abc import Iterable

import numpy as np

from pplx_jax.data.sources.overlap import words_of

_WORDS = 5  # of a run
_BANDS, _ROWS = 16, 4  # pairs that have half of their runs in common meet with 64%, with 0.8 of them in 99.98%
_PRIME = np.uint64((1 << 31) - 1)


class NearDuplicates:
    """Counts texts that an earlier one nearly equals.

    Args:
        threshold: least share of runs in common.
        seed: of the hash functions.
    """

    def __init__(self, threshold: float = 0.8, seed: int = 0):
        generator = np.random.default_rng(seed)
        self._factors, self._offsets = generator.integers(1, int(_PRIME), (2, _BANDS * _ROWS, 1), np.uint64)
        self._threshold = threshold
        self._signatures: list[np.ndarray] = []
        self._bands: list[dict[bytes, int]] = [{} for _ in range(_BANDS)]

    def add(self, texts: Iterable[str]) -> int | None:
        """Adds the texts of one example, and returns the number of an earlier one that they nearly equal, if any."""
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
        # Products of numbers below 2^31 stay below 2^62.
        return ((self._factors * hashes + self._offsets) % _PRIME).min(axis=1).astype(np.uint32)
