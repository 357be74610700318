"""Parameters on the host: their digest."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_BLOCK = 1 << 22  # values at once, so that no array is copied whole


def named_arrays(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every array with its dotted path, in the order of the paths' parts."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)


def digest(params: Any) -> str:
    """SHA-256 of names, shapes and values in float32, so that half precision and what is read of it give the same."""
    sha256 = hashlib.sha256()
    for name, array in named_arrays(params):
        sha256.update(f"{name}{list(array.shape)}".encode())
        flat = array.reshape(-1)
        for begin in range(0, len(flat), _BLOCK):
            sha256.update(np.ascontiguousarray(flat[begin : begin + _BLOCK], np.float32).data)
    return sha256.hexdigest()
