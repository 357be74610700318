"""Vectors that lie in several files, read as one array without copying them."""

import pathlib
from collections.abc import Sequence

import numpy as np


class ShardedVectors:
    """The rows of several memory-mapped .npy files, one after another.

    Attributes:
        shape: (N, width) of all together.
        dtype: of each.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        """Maps the files; at least one.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: one is damaged, or of another width or dtype than the first.
        """
        try:
            self._shards = [np.load(path, mmap_mode="r") for path in paths]
        except EOFError as error:  # an empty file
            raise ValueError(error) from None
        first = self._shards[0]
        for path, shard in zip(paths, self._shards, strict=True):
            if shard.shape[1:] != first.shape[1:] or shard.dtype != first.dtype:
                raise ValueError(f"{path.name} holds {shard.dtype}{list(shard.shape[1:])}, not {first.dtype}")
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *first.shape[1:])
        self.dtype: np.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """A range of rows: a view where one shard holds them all, else a copy."""
        begin, end, _ = rows.indices(len(self))
        parts = [
            shard[max(begin - start, 0) : end - start]
            for start, shard in zip(self._starts[:-1], self._shards, strict=True)
            if start < end and begin < start + len(shard)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [self._shards[0][:0]])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the rows int64 [n], in that order: [n, width]."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shards = self.shard_of(rows)
        for place in np.unique(shards):
            here = shards == place
            taken[here] = self._shards[place][rows[here] - self._starts[place]]
        return taken

    def shard_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the file that holds each row."""
        return np.searchsorted(self._starts, rows, side="right") - 1
