"""Parameters on the host: their digest, and that every value is a number."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pplx_jax.core.errors import BadInput

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


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; takes no memory of the array's size, as `isfinite` would."""
    return bool(np.isfinite(array.min(initial=0)) and np.isfinite(array.max(initial=0)))


def require_finite(params: Any, where: object) -> None:
    """Raises BadInput that names the first array of `where` that holds NaN or infinity."""
    for name, array in named_arrays(params):
        if not is_finite(array):
            raise BadInput(f"{where}: {name} holds NaN or infinity; train or import that model again")
