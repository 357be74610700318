"""Packs texts of different lengths into a fixed number of sequences (numpy only; runs every step, so it is fast).

A *text* attends only to itself: a sentence, a query, a document. It consists of one or more *chunks*, with one
separator token between neighbours. Each chunk is pooled into one vector (late chunking, the contextual stage of
arXiv 2602.11151). A plain text has one chunk. Sequences hold `length` tokens and at most `slots` chunks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Packing:
    """The place of every chunk. Arrays are int64 [C], in the order of the chunks in the input.

    Attributes:
        row: sequence of the chunk.
        column: first token of the chunk within its sequence.
        segment: number of its text in the sequence, from 1 (the segment id).
        slot: pooling slot of the chunk in the sequence, from 0.
        position: first token of the chunk within its text.
        kept: tokens of the chunk that fit; the rest is cut from its end.
        cut_tokens: tokens cut over all chunks.
    """

    row: np.ndarray
    column: np.ndarray
    segment: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    kept: np.ndarray
    cut_tokens: int


def pack(
    chunk_lengths: np.ndarray, chunk_counts: np.ndarray | None = None, *, rows: int, length: int, slots: int
) -> Packing:
    """Packs every text by best-fit decreasing, and shortens long chunks just enough if there is too little space.

    If there are more tokens than cells, the longest chunks are first shortened to one common length. A text that
    then still fits in no sequence joins the emptiest one, and the longest chunks of that sequence lose just the
    excess tokens. So short texts (queries) stay whole or nearly whole; no text and no chunk is ever dropped.
    Deterministic.

    Args:
        chunk_lengths: [C] tokens of each chunk, text by text.
        chunk_counts: [T] chunks of each text; None if every text is one chunk.
        rows: number of sequences to fill.
        length: tokens per sequence.
        slots: most chunks per sequence.

    Raises:
        BadInput: there are more chunks than slots, or a sequence has no space for one token of each of its chunks.
    """
    lengths = np.asarray(chunk_lengths, np.int64)
    counts = np.ones(len(lengths), np.int64) if chunk_counts is None else np.asarray(chunk_counts, np.int64)
    texts = np.repeat(np.arange(len(counts)), counts)
    separators = np.maximum(counts - 1, 0)

    def text_sizes(kept: np.ndarray) -> np.ndarray:
        return np.bincount(texts, kept, len(counts)).astype(np.int64) + separators

    kept = np.minimum(lengths, length)
    excess = np.minimum(text_sizes(kept), length).sum() - rows * length
    if excess > 0:
        kept = shorten(kept, int(kept.sum() - excess))
    sizes = text_sizes(kept)
    order = np.argsort(-sizes, kind="stable")
    row_of_text = _best_fit(sizes, counts, order, rows, length, slots)
    row = row_of_text[texts]
    for overfull in np.flatnonzero(np.bincount(row_of_text, sizes, rows) > length):
        chunks = np.flatnonzero(row == overfull)
        kept[chunks] = shorten(kept[chunks], length - int(separators[row_of_text == overfull].sum()))
    if np.any((kept == 0) & (lengths > 0)):
        raise BadInput(
            f"packing: no token is left of some of {len(lengths)} chunks in {rows} rows of {length} tokens; "
            "give the stage longer rows or more of them"
        )

    return lay_out(kept, counts, row_of_text, order, cut_tokens=int((lengths - kept).sum()))


def lay_out(
    lengths: np.ndarray, counts: np.ndarray, row_of_text: np.ndarray, order: np.ndarray, *, cut_tokens: int = 0
) -> Packing:
    """Places chunks in sequences that are already chosen: texts in the given `order`, chunks in the input order.

    Args:
        lengths: [C] tokens of each chunk, text by text.
        counts: [T] chunks of each text.
        row_of_text: [T] sequence of each text, with enough space for it.
        order: [T] texts in the order of placing.
        cut_tokens: copied to the result.
    """
    texts = np.repeat(np.arange(len(counts)), counts)
    sizes = np.bincount(texts, lengths, len(counts)).astype(np.int64) + np.maximum(counts - 1, 0)
    placed = order[np.argsort(row_of_text[order], kind="stable")]
    starts_row = np.diff(row_of_text[placed], prepend=-1) > 0
    column, segment, slot = np.empty((3, len(counts)), np.int64)
    column[placed] = _sum_before(sizes[placed], starts_row)
    segment[placed] = _sum_before(np.ones(len(placed), np.int64), starts_row) + 1
    slot[placed] = _sum_before(counts[placed], starts_row)
    starts_text = np.diff(texts, prepend=-1) > 0
    place = _sum_before(np.ones(len(texts), np.int64), starts_text)
    position = _sum_before(lengths, starts_text) + place  # one separator after each earlier chunk
    return Packing(
        row=row_of_text[texts],
        column=column[texts] + position,
        segment=segment[texts],
        slot=slot[texts] + place,
        position=position,
        kept=lengths,
        cut_tokens=cut_tokens,
    )


def shorten(lengths: np.ndarray, room: int) -> np.ndarray:
    """Shortens the longest of `lengths` to one common length (or one more), so that their sum is at most `room`."""
    ordered = np.sort(lengths)
    remaining = len(ordered) - np.arange(len(ordered))
    # If the i shortest stay whole, the others share the rest. The first one above its share is the first to be cut.
    left = room - (np.cumsum(ordered) - ordered)
    over = np.flatnonzero(ordered > left // remaining)
    if not len(over):
        return lengths
    cap, spare = divmod(max(int(left[over[0]]), 0), int(remaining[over[0]]))
    longest = np.flatnonzero(lengths > cap)
    kept = np.minimum(lengths, cap)
    kept[longest[:spare]] += 1
    return kept


def _sum_before(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the sum of the values before each one within its group; `starts` marks the first of every group."""
    before = np.cumsum(values) - values
    return before - before[starts][np.cumsum(starts) - 1]


def _best_fit(
    sizes: np.ndarray, counts: np.ndarray, order: np.ndarray, rows: int, length: int, slots: int
) -> np.ndarray:
    """Returns the sequence of every text, int64 [T]: in `order`, the fullest that it fits in, else the emptiest.

    `open_rows[f]` lists the sequences with f free tokens and a free slot. Bit f of `free_sizes` says that this
    list is not empty, so the lowest set bit from n on is the fullest sequence with space for n tokens.
    """
    if counts.sum() > rows * slots:
        raise BadInput(
            f"packing: {counts.sum()} chunks for {rows} rows of {slots} slots; give the stage more rows or slots"
        )
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]
    open_rows[length] = list(range(rows - 1, -1, -1))
    free_sizes = 1 << length
    free_slots = [slots] * rows
    row_of = [0] * len(sizes)
    for text, size, count in zip(order.tolist(), sizes[order].tolist(), counts[order].tolist(), strict=True):
        fitting = free_sizes >> size
        free = size + (fitting & -fitting).bit_length() - 1 if fitting else free_sizes.bit_length() - 1
        place = -1
        if count > 1 and free_slots[open_rows[free][-1]] < count:
            free, place = _with_slots(open_rows, free_slots, size, count)
        row = open_rows[free].pop(place)
        if not open_rows[free]:
            free_sizes ^= 1 << free
        row_of[text] = row
        free_slots[row] -= count
        if free_slots[row]:
            left = free - size
            if left >= 0:
                open_rows[left].append(row)
            else:  # of the full sequences, overfull ones are overfilled again last
                left = 0
                open_rows[0].insert(0, row)
            free_sizes |= 1 << left
    return np.array(row_of, np.int64)


def _with_slots(open_rows: list[list[int]], free_slots: list[int], size: int, count: int) -> tuple[int, int]:
    """Returns (free tokens, place in its list) of the best sequence with `count` free slots. Slow, rarely needed."""
    too_small = min(size, len(open_rows))
    for free in (*range(too_small, len(open_rows)), *range(too_small - 1, -1, -1)):
        for place in range(len(open_rows[free]) - 1, -1, -1):
            if free_slots[open_rows[free][place]] >= count:
                return free, place
    raise BadInput(f"packing: no row has {count} slots left for a text of {count} chunks; give rows more slots")
