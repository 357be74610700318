"""Storage for the vectors of a corpus: memory, a temporary file, or a folder from which an interrupted run resumes."""

import hashlib
import json
import math
import pathlib
import shutil
import tempfile
from typing import Any, Self

import numpy as np

from pplx_jax.core.files import read_json, write_json

_BYTES_IN_MEMORY = 4 << 30
FORMAT = 2
_VECTORS, _EMPTY, _PROGRESS = "vectors.npy", "empty.npy", "progress.json"


class EmbeddingStore:
    """Stores vectors that are added in order, in blocks. Leaving the `with` block without an error deletes the folder.

    Args:
        total: number of vectors that will be added.
        folder: new, or of an interrupted run with the same vectors; None if a later run cannot resume.

    Attributes:
        done: number of vectors added so far.
        vectors: [total, width], of which `done` are filled; a memory map if they are larger than 4 GiB.
        empty: bool [total], whether a vector belongs to an empty text.
    """

    def __init__(self, total: int, folder: pathlib.Path | None = None):
        self._total, self._folder = total, folder
        self.done, self.vectors, self.empty = 0, np.empty((0, 0)), np.zeros(total, bool)
        if folder is not None and (folder / _PROGRESS).exists():
            self.done = read_json(folder / _PROGRESS, fix=f"remove {folder}")["done"]
            self.vectors, self.empty = (np.load(folder / name, mmap_mode="r+") for name in (_VECTORS, _EMPTY))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, block: np.ndarray, empty: np.ndarray) -> None:
        """Adds the next vectors [n, width] and whether each is empty, bool [n]. In a folder, they are on disk before
        `done` includes them."""
        if not self.done:
            self.vectors = self._allocate(_VECTORS, (self._total, block.shape[1]), block.dtype)
            self.empty = self._allocate(_EMPTY, (self._total,), empty.dtype)
        self.vectors[self.done : self.done + len(block)] = block
        self.empty[self.done : self.done + len(block)] = empty
        self.done += len(block)
        if self._folder is not None and isinstance(self.vectors, np.memmap) and isinstance(self.empty, np.memmap):
            self.vectors.flush()
            self.empty.flush()
            write_json(self._folder / _PROGRESS, {"done": self.done})

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return np.lib.format.open_memmap(self._folder / name, "w+", dtype, shape)
        if math.prod(shape) * dtype.itemsize <= _BYTES_IN_MEMORY:
            return np.empty(shape, dtype)
        return np.memmap(tempfile.TemporaryFile(prefix="pplx-jax-vectors-"), dtype, "w+", shape=shape)


def store_folder(scratch: pathlib.Path | None, **identity: Any) -> pathlib.Path | None:
    """Returns a folder in `scratch` that is unique to `identity`; None if `scratch` is None."""
    if scratch is None:
        return None
    return scratch / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
