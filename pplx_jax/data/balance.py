"""Examples dealt to the batches of a window so that all batches hold about as many tokens.

Rows are as many in every batch, so what one batch has more than another is room wasted in the other or tokens cut.
Dealing by length within a window of batches evens that out, and changes neither which examples a window holds nor
which source has which place.
"""

import numpy as np

_LEAST = 16  # examples of a bin
_BINS = 256  # most bins of a batch


def bin_size(batch_size: int) -> int:
    """Examples of a bin: the part of a batch that is evened out, so that shares of hosts are even too."""
    for size in range(max(_LEAST, -(-batch_size // _BINS)), batch_size):
        if batch_size % size == 0:
            return size
    return batch_size


def deal(groups: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Where each example of a window goes.

    Args:
        groups: [n] int; an example goes to a place of its own group.
        lengths: [n] tokens of each.
        size: examples of a bin; bins are consecutive places, the last may be smaller.

    Returns:
        [n] int64: the example at each place; groups[result] == groups. Deterministic.
    """
    count = len(groups)
    bins = np.arange(count) // size
    load = np.zeros(-(-count // size), np.int64)
    result = np.empty(count, np.int64)
    by_group = np.argsort(groups, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    # Groups that vary most come first: the others make up for what they leave uneven.
    members.sort(key=lambda places: -float(np.var(lengths[places])) * len(places))
    for places in members:
        examples = places[np.argsort(-lengths[places], kind="stable")]
        own = bins[places]  # ascending
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        turn = np.arange(len(places)) - np.repeat(starts, np.diff(np.append(starts, len(places))))
        dealt = 0
        for round_ in range(int(turn.max()) + 1):
            open_places = places[turn == round_]  # one in every bin that still has room
            order = np.argsort(load[bins[open_places]], kind="stable")
            chosen = examples[dealt : dealt + len(open_places)]
            result[open_places[order]] = chosen
            load[bins[open_places[order]]] += lengths[chosen]
            dealt += len(open_places)
    return result
