"""Deals the examples of a window to its batches so that all batches hold about the same number of tokens.

Every batch has the same number of sequences, so a batch with few tokens wastes space and one with many has tokens cut.
Dealing by length within a window of batches evens that out. It changes neither which examples a window holds nor which
source each place belongs to.
"""

from collections.abc import Iterator

import numpy as np

_LEAST = 16  # minimum number of examples per bin
_BINS = 256  # maximum number of bins per batch
_STIRRED = 4  # neighbours by length that are put in random order
_FEW_BATCHES = 8  # with fewer, batches are large and stay even although examples of one key meet in a batch


def bin_size(batch_size: int) -> int:
    """Returns the examples per bin: the part of a batch that is evened out, so that shares of hosts are even too."""
    for size in range(max(_LEAST, -(-batch_size // _BINS)), batch_size):
        if batch_size % size == 0:
            return size
    return batch_size


def deal(groups: np.ndarray, lengths: np.ndarray, keys: np.ndarray, size: int, batch_size: int) -> np.ndarray:
    """Returns which example goes to each place of a window.

    Args:
        groups: [n] int; an example goes to a place of the same group.
        lengths: [n] tokens of each example.
        keys: [n] int; examples of one key (queries of one document) go to different batches if possible.
        size: examples per bin; a bin is a span of places, the last may be smaller.
        batch_size: examples per batch, a multiple of `size`.

    Returns:
        [n] int64: the example at each place; groups[result] == groups. Deterministic.
    """
    count = len(groups)
    bins = np.arange(count) // size
    batch_of_bin = np.arange(-(-count // size)) * size // batch_size
    load, batch_load = np.zeros(len(batch_of_bin), np.int64), np.zeros(int(batch_of_bin[-1]) + 1, np.int64)
    result = np.empty(count, np.int64)
    same = np.unique(keys, return_inverse=True)[1]
    usual = np.bincount(same, lengths) / np.bincount(same)  # mean length of a key: its examples stay together
    by_group = np.argsort(groups, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    # Groups whose lengths vary most come first: the later groups even out the difference.
    members.sort(key=lambda places: -float(np.var(lengths[places])) * len(places))
    for places in members:
        examples = _stirred(places[np.lexsort((same[places], -usual[same[places]]))])
        turn = _place_within(bins[places])  # bins are ascending
        dealt, key, held = 0, -1, np.zeros(len(batch_load), bool)
        for round_ in range(int(turn.max()) + 1):
            open_places = places[turn == round_]  # one in every bin that has a place left
            for block in _blocks(bins[open_places], load, batch_of_bin):
                block = open_places[block]
                batch = batch_of_bin[bins[block]]
                chosen = examples[dealt : dealt + len(block)]
                # The longest examples go to the lightest batches; batches that hold the current key come last.
                if same[chosen[0]] != key:
                    held[:] = False
                order = np.lexsort((load[bins[block]], batch_load[batch], held[batch]))
                block, batch = block[order], batch[order]
                result[block] = chosen
                load[bins[block]] += lengths[chosen]
                np.add.at(batch_load, batch, lengths[chosen])
                if same[chosen[-1]] != key:
                    key, held = same[chosen[-1]], np.zeros(len(batch_load), bool)
                held[batch[same[chosen] == key]] = True
                dealt += len(block)
    return result


def _stirred(ordered: np.ndarray) -> np.ndarray:
    """Sorts every few neighbours by place, which is a random order: otherwise every pass would deal the same way."""
    return ordered[np.lexsort((ordered, np.arange(len(ordered)) // _STIRRED))]


def _blocks(open_bins: np.ndarray, load: np.ndarray, batch_of_bin: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of bins: the lightest of each batch, then the next of each; one block if there are few batches."""
    batch = batch_of_bin[open_bins]
    if batch_of_bin[-1] < _FEW_BATCHES:
        yield np.arange(len(open_bins))
        return
    by_load = np.lexsort((load[open_bins], batch))
    within = _place_within(batch[by_load])
    for place in range(int(within.max()) + 1):
        yield by_load[within == place]


def _place_within(ascending: np.ndarray) -> np.ndarray:
    """Returns how many equal values come before each value."""
    places = np.arange(len(ascending))
    repeated = np.zeros(len(ascending), bool)
    np.equal(ascending[1:], ascending[:-1], out=repeated[1:])
    return places - np.maximum.accumulate(np.where(repeated, 0, places))
