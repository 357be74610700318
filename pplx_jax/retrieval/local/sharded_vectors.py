"""Vectors in several .npy files, read as one array without loading them."""

import pathlib
from collections.abc import Sequence

import numpy as np


class ShardedVectors:
    """The rows of several .npy files, concatenated.

    At most one file is open at a time. Memory maps would each hold a file descriptor, and 2 million vectors in shards
    of the default size would exceed the usual limit of 1024 (`ulimit -n`).

    Attributes:
        shape: (N, width) of the concatenated array.
        dtype: of every file.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        """Reads the headers and checks the sizes of the files. There must be at least one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or has another width or dtype than the first.
        """
        self._paths, headers = paths, [_read_header(path) for path in paths]
        (_, *width), self.dtype, _ = headers[0]
        for path, (shape, dtype, _) in zip(paths, headers, strict=True):
            if list(shape[1:]) != width or dtype != self.dtype:
                raise ValueError(f"{path.name} holds {dtype}{list(shape[1:])}, not {self.dtype}{width}")
        self._offsets = [offset for _, _, offset in headers]
        self._starts = np.cumsum([0, *(shape[0] for shape, _, _ in headers)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns a copy of a range of rows."""
        begin, end, _ = rows.indices(len(self))
        copy = np.empty((max(end - begin, 0), *self.shape[1:]), self.dtype)
        while begin < end:
            shard = int(self.shard_of(np.array(begin)))
            stop = min(end, int(self._starts[shard + 1]))
            self._read(shard, [begin], [copy[len(copy) - (end - begin) : len(copy) - (end - stop)]])
            begin = stop
        return copy

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns copies of the rows int64 [n], in that order: [n, width]."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shards = self.shard_of(rows)
        order = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[order], prepend=-1, append=-1))
        for first, last in zip(bounds, bounds[1:], strict=False):
            places = order[first:last]
            self._read(int(shards[places[0]]), rows[places].tolist(), [taken[place] for place in places])
        return taken

    def range(self, begin: int, end: int) -> "RowRange":
        """Returns the rows from `begin` to `end` as vectors of their own, which are read when they are used."""
        return RowRange(self, begin, end)

    def shard_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of the file that contains each row."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _read(self, shard: int, rows: Sequence[int], outputs: Sequence[np.ndarray]) -> None:
        """Fills each output with the bytes of one file from the given row on."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        with open(self._paths[shard], "rb") as file:
            for row, output in zip(rows, outputs, strict=True):
                file.seek(self._offsets[shard] + (row - int(self._starts[shard])) * row_bytes)
                if file.readinto(output.data.cast("B")) != output.nbytes:
                    raise OSError(f"{self._paths[shard]} ended while it was read")


class RowRange:
    """A range of the rows of `ShardedVectors`, numbered from 0."""

    def __init__(self, vectors: ShardedVectors, begin: int, end: int):
        """Use `ShardedVectors.range` instead."""
        self._vectors, self._begin = vectors, begin
        self.shape, self.dtype = (end - begin, *vectors.shape[1:]), vectors.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns a copy of a range of rows."""
        begin, end, _ = rows.indices(len(self))
        return self._vectors[self._begin + begin : self._begin + end]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns copies of the rows int64 [n], in that order: [n, width]."""
        return self._vectors.take(rows + self._begin)


def _read_header(path: pathlib.Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns shape, dtype and the offset of the values in bytes."""
    try:
        array = np.load(path, mmap_mode="r")  # also checks the file's size
    except EOFError as error:  # an empty file
        raise ValueError(error) from None
    if not array.ndim or not array.flags.c_contiguous:
        raise ValueError(f"{path.name} does not hold rows")
    return array.shape, array.dtype, array.offset
