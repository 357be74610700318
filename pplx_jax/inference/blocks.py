"""Blocks: the packed sequences that one device encodes in one forward pass.

The contents and the shape of a block do not depend on the number of devices or processes, and a device encodes a block
as a whole. So the vectors are equal bit for bit however the blocks are shared. They would not be if a pass were cut
into a part per device: a matrix product of fewer tokens may add up in another order (see `tests/inference/`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pplx_jax.data.batches.packing import Packing, lay_out
from pplx_jax.inference.overflow import Window, windows
from pplx_jax.inference.sequence_plan import plan_sequences, power_of_two

Tokens = Sequence[int] | np.ndarray
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Block:
    """The sequences of one device in one forward pass.

    Attributes:
      rows, length, slots: the shape: number of sequences, tokens of a sequence, chunks of a sequence.
      place: [n] where its vectors belong in the result.
      row, slot: [n] where the forward pass returns them.
      fill: writes the sequences into an empty batch of arrays [rows, length].
      texts, tokens: finished by this block, for reports of progress.
    """

    rows: int
    length: int
    slots: int
    place: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    fill: Callable[[Batch], None]
    texts: int
    tokens: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.rows, self.length, self.slots


@dataclasses.dataclass(frozen=True)
class Cutter:
    """Cuts documents into blocks.

    Attributes:
      limit: tokens of the longest sequence.
      batch_tokens: tokens of a block. A longer sequence is a block by itself.
      slots: chunks of a sequence. A document with more chunks gets a sequence with more slots.
      shortest: tokens of the shortest sequence, a power of two.
      separator_id: the token between chunks.
      alone: whether every document is a block by itself. Its shape then depends on nothing else.
    """

    limit: int
    batch_tokens: int
    slots: int
    shortest: int
    separator_id: int
    alone: bool = False

    def packed(
        self, ids: Sequence[Tokens], lengths: np.ndarray, counts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray
    ) -> Iterator[Block]:
        """Yields blocks of documents that share sequences. The vector of chunk i belongs at place i.

        Args:
          ids: token ids of every chunk.
          lengths: [C] how many of them to encode.
          counts: [T] chunks of every document.
          sizes: [T] tokens of every document with separators, at most `limit`.
          chosen: indices of the documents to encode.
        """
        first_chunk = np.cumsum(counts) - counts
        shape = {"limit": self.limit, "slots": self.slots, "shortest": self.shortest}
        groups = np.split(chosen, len(chosen)) if self.alone and len(chosen) else [chosen]
        for plan in itertools.chain.from_iterable(plan_sequences(group, sizes, counts, **shape) for group in groups):
            chunks = np.concatenate([np.arange(first_chunk[t], first_chunk[t] + counts[t]) for t in plan.texts])
            placed = lay_out(lengths[chunks], counts[plan.texts], plan.sequence, np.arange(len(plan.texts)))
            for first_row, rows in self._rows(int(placed.row.max()) + 1, plan.length):
                inside = np.flatnonzero((placed.row >= first_row) & (placed.row < first_row + rows))
                texts = plan.texts[(plan.sequence >= first_row) & (plan.sequence < first_row + rows)]
                yield Block(
                    rows,
                    plan.length,
                    plan.slots,
                    chunks[inside],
                    placed.row[inside] - first_row,
                    placed.slot[inside],
                    _fill_packed(ids, chunks, placed, inside, first_row, self.separator_id),
                    len(texts),
                    int(sizes[texts].sum()),
                )

    def split(self, ids: Sequence[Tokens], overlap: int, first_place: int) -> "SplitDocument":
        """Returns the blocks of a document over the limit: one window per sequence.

        Args:
          ids: token ids of its chunks.
          overlap: minimum tokens that windows share.
          first_place: where its vectors begin.
        """
        lengths = np.array([len(chunk) for chunk in ids])
        first = np.cumsum(lengths) - lengths + np.arange(len(ids))
        size = int(first[-1] + lengths[-1])
        tokens, chunk_of = np.full(size, self.separator_id, np.int32), np.full(size, -1)
        for place, chunk in enumerate(ids):
            tokens[first[place] : first[place] + len(chunk)] = chunk
            chunk_of[first[place] : first[place] + len(chunk)] = place
        cut = windows(size, self.limit, overlap, first)
        blocks, chunks, weights, begin = [], [], [], first_place
        for first_row, rows in self._rows(len(cut), self.limit):
            of_block = cut[first_row : first_row + rows]
            members = [_pooled_in(chunk_of, window) for window in of_block]
            most = max(len(found) for found, _ in members)
            row = np.repeat(np.arange(len(of_block)), [len(found) for found, _ in members])
            slot = np.concatenate([np.arange(len(found)) for found, _ in members])
            ends = first_row + rows >= len(cut)
            blocks.append(
                Block(
                    rows,
                    self.limit,
                    power_of_two(max(self.slots, most)),
                    np.arange(begin, begin + len(row)),
                    row,
                    slot,
                    _fill_windows(tokens, chunk_of, of_block),
                    int(ends),
                    size if ends else 0,
                )
            )
            chunks += [found for found, _ in members]
            weights += [count for _, count in members]
            begin += len(row)
        return SplitDocument(blocks, first_place, np.concatenate(chunks), np.concatenate(weights))

    def shapes(self, most_tokens: int) -> Iterator[tuple[int, int, int]]:
        """Yields the shapes (rows, length, slots) of all blocks of at most so many tokens, the smallest first.

        Documents with more chunks than `slots` have other shapes.
        """
        lengths = [self.shortest << step for step in range(max(self.limit // self.shortest, 1).bit_length())]
        for length in sorted({min(length, self.limit) for length in [*lengths, self.limit]}):
            most = max(self.batch_tokens // length, 1)
            for rows in sorted({*(1 << step for step in range(most.bit_length())), most}):
                if rows * length <= most_tokens:
                    yield rows, length, self.slots

    def _rows(self, rows: int, length: int) -> Iterator[tuple[int, int]]:
        """Yields (first row, number of rows) of every block. The last is padded to a power of two."""
        most = max(self.batch_tokens // length, 1)
        for first_row in range(0, rows, most):
            yield first_row, min(most, power_of_two(rows - first_row))


@dataclasses.dataclass(frozen=True)
class SplitDocument:
    """A document over the limit as blocks.

    Attributes:
      blocks: of its windows.
      first_place: where their vectors begin in the result.
      chunks: [n] the chunk of the document that each vector is a part of.
      weights: [n] tokens of each vector.
    """

    blocks: list[Block]
    first_place: int
    chunks: np.ndarray
    weights: np.ndarray

    def pooled(self, vectors: np.ndarray, chunks: int) -> np.ndarray:
        """Returns the means of its chunks [chunks, D] float32; zero for a chunk without tokens.

        Args:
          vectors: the result, [.., D].
          chunks: of the document.
        """
        totals, weights = np.zeros((chunks, vectors.shape[1])), np.zeros(chunks)
        own = vectors[self.first_place : self.first_place + len(self.chunks)]
        np.add.at(totals, self.chunks, own * self.weights[:, None].astype(np.float32))
        np.add.at(weights, self.chunks, self.weights)
        return (totals / np.maximum(weights, 1)[:, None]).astype(np.float32)


def _pooled_in(chunk_of: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chunks that a window pools, ascending, and the tokens of each."""
    own = chunk_of[window.own : window.own_stop]
    return np.unique(own[own >= 0], return_counts=True)


def _fill_packed(
    ids: Sequence[Tokens], chunks: np.ndarray, placed: Packing, inside: np.ndarray, first_row: int, separator_id: int
) -> Callable[[Batch], None]:
    def fill(batch: Batch) -> None:
        for place in inside:
            row, column, kept = placed.row[place] - first_row, placed.column[place], placed.kept[place]
            cells = slice(column, column + kept)
            batch["tokens"][row, cells] = ids[chunks[place]][:kept]
            batch["segment_ids"][row, cells] = placed.segment[place]
            batch["positions"][row, cells] = np.arange(placed.position[place], placed.position[place] + kept)
            batch["chunk_ids"][row, cells] = placed.slot[place] + 1
            if placed.position[place] > 0:  # not the first chunk: a separator comes before it
                batch["tokens"][row, column - 1] = separator_id
                batch["segment_ids"][row, column - 1] = placed.segment[place]
                batch["positions"][row, column - 1] = placed.position[place] - 1

    return fill


def _fill_windows(tokens: np.ndarray, chunk_of: np.ndarray, cut: list[Window]) -> Callable[[Batch], None]:
    def fill(batch: Batch) -> None:
        for row, window in enumerate(cut):
            batch["tokens"][row] = tokens[window.start : window.stop]
            batch["segment_ids"][row] = 1
            batch["positions"][row] = np.arange(window.stop - window.start)
            own, (members, _) = chunk_of[window.own : window.own_stop], _pooled_in(chunk_of, window)
            cells = slice(window.own - window.start, window.own_stop - window.start)
            batch["chunk_ids"][row, cells] = np.where(own >= 0, np.searchsorted(members, own) + 1, 0)

    return fill


def in_passes(blocks: Sequence[Block], devices: int) -> list[list[Block]]:
    """Groups blocks of one shape into passes of at most `devices` blocks."""
    of_shape: dict[tuple[int, int, int], list[Block]] = {}
    for block in blocks:
        of_shape.setdefault(block.shape, []).append(block)
    return [same[start : start + devices] for same in of_shape.values() for start in range(0, len(same), devices)]
