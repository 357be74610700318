"""Plans which texts share a sequence, if sequences may have any length up to the model's limit.

`data.batches.packing.pack` fills a given number of sequences of one length, as training needs.
"""

import bisect
import dataclasses
from collections.abc import Iterator

import numpy as np

# Shortest sequence, by platform. Accelerators need long ones to fill their tiles. On a CPU a token pays for every other
# token of its sequence in attention, so a sequence is hardly longer than its longest text.
_SHORTEST = {"cpu": 64}
_SHORTEST_ELSEWHERE = 256
_TEXTS_AT_ONCE = 8192
_TRIED = 16


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Packed sequences of one shape.

    Attributes:
      length: tokens of a sequence.
      slots: maximum chunks of a sequence.
      texts: [T] the texts, sequence by sequence.
      sequence: [T] the sequence of each text, from 0.
    """

    length: int
    slots: int
    texts: np.ndarray
    sequence: np.ndarray


def shortest_sequence(platform: str) -> int:
    """Returns the shortest sequence on a platform ("cpu", "gpu", "tpu"), in tokens."""
    return _SHORTEST.get(platform, _SHORTEST_ELSEWHERE)


def plan_sequences(
    texts: np.ndarray, sizes: np.ndarray, counts: np.ndarray, *, limit: int, slots: int, shortest: int
) -> Iterator[Sequences]:
    """Assigns every text to a sequence. There are few shapes, so that few programs are compiled. Deterministic.

    The length of a sequence is the smallest power of two from `shortest` that fits its longest text, at most `limit`.
    The sequence is filled with the longest other texts that fit.

    Args:
      texts: indices of the texts to assign.
      sizes: [T] tokens of every text, at most `limit`.
      counts: [T] chunks of every text.
      limit: maximum length of a sequence.
      slots: chunks of a sequence. A text with more chunks gets a sequence with a power of two of slots.
      shortest: minimum length of a sequence, a power of two.

    Yields:
      Groups of sequences of one shape. A shape rarely occurs more than once per 8192 texts.
    """
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        block = texts[start : start + _TEXTS_AT_ONCE]
        groups: dict[tuple[int, int], list[list[int]]] = {}
        for shape, members in _fill(
            block[np.argsort(sizes[block], kind="stable")], sizes, counts, limit, slots, shortest
        ):
            groups.setdefault(shape, []).append(members)
        for (length, most), sequences in groups.items():
            numbers = np.repeat(np.arange(len(sequences)), [len(members) for members in sequences])
            yield Sequences(length, most, np.concatenate(sequences), numbers)


def _fill(
    ascending: np.ndarray, sizes: np.ndarray, counts: np.ndarray, limit: int, slots: int, shortest: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Yields ((length, slots), texts) of each sequence, from the longest text to the shortest."""
    waiting, waiting_sizes = ascending.tolist(), sizes[ascending].tolist()
    while waiting:
        text, size = waiting.pop(), waiting_sizes.pop()
        length = min(max(power_of_two(size), shortest), limit)
        most = max(slots, power_of_two(counts[text]))
        members, free, free_slots = [text], length - size, most - counts[text]
        while free_slots > 0:
            fitting = bisect.bisect_right(waiting_sizes, free)
            # The longest text that fits may have too many chunks; then slightly shorter ones are tried.
            nearest = range(fitting - 1, max(fitting - _TRIED, 0) - 1, -1)
            place = next((place for place in nearest if counts[waiting[place]] <= free_slots), None)
            if place is None:
                break
            members.append(waiting.pop(place))
            free -= waiting_sizes.pop(place)
            free_slots -= counts[members[-1]]
        yield (length, most), members


def power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least `number`, and at least 1."""
    return 1 << (int(number) - 1).bit_length() if number > 1 else 1
