"""Trees of parameters: dotted names, shapes, digest, and the check that every value is finite."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pplx_jax.core.errors import BadInput

_BLOCK = 1 << 22  # values, so that no complete array is copied


def dotted(path: tuple[Any, ...]) -> str:
    """Returns the dotted name of a leaf, such as "layers.mlp.up.kernel", from its path in `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by dotted name, in the order of the tree."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves by dotted name; () for a leaf without a shape."""
    return {name: tuple(getattr(leaf, "shape", ())) for name, leaf in named_leaves(tree).items()}


def named_arrays(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every array with its dotted path, in the order of the tree."""
    for name, leaf in named_leaves(params).items():
        yield name, np.asarray(leaf)


def digest(params: Any) -> str:
    """Returns the SHA-256 of names, shapes and values in float32: the same for bfloat16 and for its float32 copy."""
    sha256 = hashlib.sha256()
    for name, array in named_arrays(params):
        sha256.update(f"{name}{list(array.shape)}".encode())
        flat = array.reshape(-1)
        for begin in range(0, len(flat), _BLOCK):
            sha256.update(np.ascontiguousarray(flat[begin : begin + _BLOCK], np.float32).data)
    return sha256.hexdigest()


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all values are finite, without the temporary array that `isfinite` makes."""
    return bool(np.isfinite(array.min(initial=0)) and np.isfinite(array.max(initial=0)))


def require_finite(params: Any, where: object) -> None:
    """Raises BadInput with the name of the first array that holds NaN or infinity."""
    for name, array in named_arrays(params):
        if not is_finite(array):
            raise BadInput(f"{where}: {name} holds NaN or infinity; train or import that model again")
