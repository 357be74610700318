"""Which texts share a row, when the rows may be as long as the texts want (numpy only).

`data.batches.packing.pack` fills a given number of rows of one length, as training needs; here no row is given.
"""

import bisect
import dataclasses
from collections.abc import Iterator

import numpy as np

SHORTEST_ROW = 256
_TEXTS_AT_ONCE = 8192
_TRIED = 16


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one shape.

    Attributes:
      length: tokens of a row.
      slots: chunks of a row.
      texts: [T] texts in them, row after row.
      row: [T] the row of each.
    """

    length: int
    slots: int
    texts: np.ndarray
    row: np.ndarray


def plan_rows(texts: np.ndarray, sizes: np.ndarray, counts: np.ndarray, *, limit: int, slots: int) -> Iterator[Rows]:
    """Puts every text in a row, the shapes few so that few programs are compiled.

    A row is as long as the least power of two (and no longer than `limit`) that takes its longest text, and is
    filled up with the longest of the others that fit. Deterministic.

    Args:
      texts: which of the texts to place.
      sizes: [T] tokens of every text, at most `limit`.
      counts: [T] chunks of every text.
      limit: longest row.
      slots: chunks of a row; a text of more has a row of a power of two of them.

    Yields:
      Groups of rows of one shape, each shape seldom more than once in 8192 texts.
    """
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        block = texts[start : start + _TEXTS_AT_ONCE]
        groups: dict[tuple[int, int], list[list[int]]] = {}
        for shape, row in _rows(block[np.argsort(sizes[block], kind="stable")], sizes, counts, limit, slots):
            groups.setdefault(shape, []).append(row)
        for (length, row_slots), rows in groups.items():
            numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
            yield Rows(length, row_slots, np.concatenate(rows), numbers)


def _rows(
    ascending: np.ndarray, sizes: np.ndarray, counts: np.ndarray, limit: int, slots: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    waiting, waiting_sizes = ascending.tolist(), sizes[ascending].tolist()
    while waiting:
        text, size = waiting.pop(), waiting_sizes.pop()
        length = min(max(power_of_two(size), SHORTEST_ROW), limit)
        row_slots = max(slots, power_of_two(counts[text]))
        row, free, free_slots = [text], length - size, row_slots - counts[text]
        while free_slots > 0:
            fitting = bisect.bisect_right(waiting_sizes, free)
            # Documents of too many chunks for this row may stand in the way of texts that are little shorter.
            nearest = range(fitting - 1, max(fitting - _TRIED, 0) - 1, -1)
            place = next((place for place in nearest if counts[waiting[place]] <= free_slots), None)
            if place is None:
                break
            row.append(waiting.pop(place))
            free -= waiting_sizes.pop(place)
            free_slots -= counts[row[-1]]
        yield (length, row_slots), row


def power_of_two(number: int) -> int:
    """The least power of two from `number` on, and from 1."""
    return 1 << (int(number) - 1).bit_length() if number > 1 else 1
