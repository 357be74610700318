"""Arrays of different lengths, concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class Ragged:
    """Arrays of different lengths, concatenated.

    Attributes:
        values: [total] the elements of all arrays.
        offsets: int64 [n+1]; array i is `values[offsets[i]:offsets[i+1]]`.
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self.values = values
        self.offsets = offsets

    @classmethod
    def from_arrays(cls, arrays: Iterable[Any], dtype: Any = np.int32) -> Ragged:
        """Concatenates arrays or lists of numbers."""
        arrays = [np.asarray(array, dtype) for array in arrays]
        lengths = np.array([len(array) for array in arrays], np.int64)
        return cls.from_lengths(np.concatenate(arrays) if arrays else np.zeros(0, dtype), lengths)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Wraps concatenated `values` [total], given the `lengths` [n] of the arrays."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} arrays")
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def lengths(self) -> np.ndarray:
        """Returns the length of every array: int64 [n]."""
        return np.diff(self.offsets)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the concatenation of `arange(start, start + length)` for every pair."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
