"""Room for a corpus's vectors: memory, a file that the system drops, or one that an interrupted run goes on with."""

import hashlib
import json
import pathlib
import shutil
import tempfile
from typing import Any, Self

import numpy as np

from pplx_jax.core.files import read_json, write_json

_BYTES_IN_MEMORY = 4 << 30
_VECTORS, _PROGRESS = "vectors.npy", "progress.json"


class CorpusVectors:
    """Vectors that are added in order, block after block. Leaving the `with` block without an error deletes the folder.

    Args:
        total: of the vectors that will be added.
        folder: of an earlier, interrupted run of the very same vectors, or new; None keeps nothing for a later run.

    Attributes:
        done: vectors that are there.
        vectors: [total, width], of which `done` are filled; a memory map where they would not fit in memory.
    """

    def __init__(self, total: int, folder: pathlib.Path | None = None):
        self._total, self._folder = total, folder
        self.done, self.vectors = 0, np.empty((0, 0))
        if folder is not None and (folder / _PROGRESS).exists():
            self.done = read_json(folder / _PROGRESS, fix=f"remove {folder}")["done"]
            self.vectors = np.load(folder / _VECTORS, mmap_mode="r+")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, block: np.ndarray) -> None:
        """Adds the next vectors [n, width], and to a folder such that they are on disk before they count."""
        if not self.done:
            self.vectors = self._room((self._total, block.shape[1]), block.dtype)
        self.vectors[self.done : self.done + len(block)] = block
        self.done += len(block)
        if self._folder is not None and isinstance(self.vectors, np.memmap):
            self.vectors.flush()
            write_json(self._folder / _PROGRESS, {"done": self.done})

    def _room(self, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return np.lib.format.open_memmap(self._folder / _VECTORS, "w+", dtype, shape)
        if shape[0] * shape[1] * dtype.itemsize <= _BYTES_IN_MEMORY:
            return np.empty(shape, dtype)
        return np.memmap(tempfile.TemporaryFile(prefix="pplx-jax-vectors-"), dtype, "w+", shape=shape)


def folder_of(scratch: pathlib.Path | None, **identity: Any) -> pathlib.Path | None:
    """A folder in `scratch` for all that makes vectors what they are, and for nothing else; None without `scratch`."""
    if scratch is None:
        return None
    return scratch / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
