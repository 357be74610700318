"""Hashes by which copies of a text are known once it is cut to its length."""

import zlib
from collections.abc import Iterable

import numpy as np


def token_hashes(texts: Iterable[np.ndarray]) -> np.ndarray:
    """[n] int32: the CRC of each text's tokens; two different texts agree by a chance of one in four billion."""
    crcs = [zlib.crc32(np.ascontiguousarray(text, np.int32).tobytes()) for text in texts]
    return np.array(crcs, np.uint32).view(np.int32)
