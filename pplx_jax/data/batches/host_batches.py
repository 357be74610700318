"""Complete batches for this process: examples selected, packed, and placed on the devices that this process holds.

A batch is packed in `groups` of equal size, each into sequences of its own. The groups and the number of sequences that
they fill are the same for any number of processes and devices, and so is every batch. Empty sequences at the end of a
group make their number divisible by the devices. A process packs the groups that its devices hold a part of, and fills
exactly the shards of its devices, whatever their order in the mesh: on real TPU slices they are not neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from pplx_jax.data.batches.batch_spec import BatchSpec, multiple_for
from pplx_jax.data.batches.examples import Examples, Selection, Tables
from pplx_jax.data.batches.packed_batch import PackedBatch, padded
from pplx_jax.data.batches.prefetch import Prefetch
from pplx_jax.data.batches.shares import (
    Share,
    best_groups,
    packed_part,
    rows_of,
    shard_count,
    share_of,
    shares,
)
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.parallel.global_array import global_array

COUNTS = ("tokens", "cut_tokens", "cells", "token_pairs")


class Batch(NamedTuple):
    """A global batch.

    Attributes:
        arrays: name -> array on the devices; the first axis is sharded.
        counts: `tokens`, `cut_tokens`, `cells` (of tokens or padding) and `token_pairs` (sum of squared text lengths).
            Every group is counted by one process: the sums over all processes are those of the batch.
        tokens: of the whole batch, as this process estimates them from the groups that it packed.
        position: examples of the stream consumed so far, over all processes.
        rows: [n] table rows of the examples that this process packed.
    """

    arrays: dict[str, jax.Array]
    counts: dict[str, float]
    tokens: int
    position: int
    rows: np.ndarray


class HostBatches(Iterator[Batch]):
    """Endless iterator of batches. A thread selects and packs ahead; placing happens in `next`.

    Args:
        spec: what a batch contains.
        tables: token tables by source, or one table.
        mixture: which sources are read when; None reads all in proportion to their examples.
        seed: of the order.
        sharding: of the first axis of every array, over sequences and over examples alike.
        groups: parts of a batch that are packed separately.
        position: examples consumed so far; the first batch starts there.
        held_out: the last examples of each table, this many, are in no batch.

    Attributes:
        examples: the stream.

    Raises:
        BadInput: the batch does not divide into the groups, a batch wants more examples than a table has, the
            mixture names an unknown source, or no device of this process is in the mesh.
    """

    def __init__(
        self,
        spec: BatchSpec,
        tables: Tables | TokenTable,
        mixture: Mixture | Curriculum | None,
        seed: int,
        sharding: jax.sharding.Sharding,
        *,
        groups: int = 1,
        position: int = 0,
        held_out: int = 0,
    ):
        tables = {"": [tables]} if isinstance(tables, TokenTable) else tables
        self.examples = Examples(tables, mixture, spec.batch_size, seed, held_out)
        self._batch_size, self._group_spec = spec.batch_size, spec.part(groups)
        self._groups, self._sharding = groups, sharding
        shared = shares(sharding, groups)
        self._share = share_of(jax.process_index(), shared)
        self._say_if_packed_twice(shared)
        self._filled = self.examples.sequences(self._group_spec, multiple_of=1)
        multiple = spec.microbatches * multiple_for(groups, shard_count(sharding))
        self._sequences = {group: -(-filled // multiple) * multiple for group, filled in self._filled.items()}
        self._start = position
        self._prefetch: Prefetch | None = None  # the thread starts with the first `next`

    @property
    def wait_seconds(self) -> float:
        """Time spent so far in waiting for batches."""
        return self._prefetch.wait_seconds if self._prefetch else 0.0

    def seek(self, position: int) -> None:
        """Starts from another position; to be called before the first `next`."""
        assert self._prefetch is None
        self._start = position

    def __next__(self) -> Batch:
        if self._prefetch is None:
            self._prefetch = Prefetch(self._read, self._start, self._batch_size)
        read, position = next(self._prefetch)
        return self._complete(read, position)

    def at(self, position: int) -> Batch:
        """The batch that starts at `position`, read again; the iteration goes on as if it had not been."""
        return self._complete(self._read(position), position + self._batch_size)

    def close(self) -> None:
        """Ends the thread."""
        if self._prefetch is not None:
            self._prefetch.close()

    def __enter__(self) -> HostBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, position: int) -> tuple[dict[int, PackedBatch], np.ndarray]:
        """The packed groups of one batch by number, and the table rows of their examples."""
        selection = self.examples.select(np.arange(position, position + self._batch_size))
        sequences, size = self._sequences[selection.group], self._group_spec.batch_size
        groups, rows = {}, []
        for group in self._share.packed:
            part = slice(group * size, (group + 1) * size)
            chosen = Selection(selection.table[part], selection.row[part], selection.group)
            filled = self._filled[selection.group]
            packed = self.examples.pack(self._group_spec, chosen, filled, group * sequences)
            groups[group] = padded(packed, sequences, self.examples.pad_id)
            rows.append(chosen.row)
        return groups, np.concatenate(rows)

    def _complete(self, read: tuple[dict[int, PackedBatch], np.ndarray], position: int) -> Batch:
        groups, rows = read
        counted = [_counts(groups[group]) for group in self._share.counted]
        counts = {name: float(sum(one[name] for one in counted)) for name in COUNTS}
        tokens = sum(int(packed.metrics["tokens"]) for packed in groups.values()) * self._groups // len(groups)
        return Batch(self._placed(groups), counts, tokens, position, rows)

    def _placed(self, groups: Mapping[int, PackedBatch]) -> dict[str, jax.Array]:
        arrays = {}
        for name, first in next(iter(groups.values())).arrays.items():
            parts = {group: packed.arrays[name] for group, packed in groups.items()}
            if len(groups) == self._groups and jax.process_count() == 1:
                arrays[name] = jax.device_put(np.concatenate([parts[group] for group in sorted(parts)]), self._sharding)
                continue
            shape = (len(first) * self._groups, *first.shape[1:])
            arrays[name] = global_array(shape, self._sharding, lambda index, parts=parts: rows_of(parts, index))
        return arrays

    def _say_if_packed_twice(self, shared: Mapping[int, Share]) -> None:
        best = best_groups(self._sharding, self._batch_size)
        if jax.process_index() == 0 and packed_part(shares(self._sharding, best)) < packed_part(shared):
            logging.warning(
                "each batch is packed in %d groups, and the %d processes pack %d: some pack the same group. "
                "Training.packing_groups=%d shares the work (it also changes how texts share sequences)",
                self._groups,
                len(shared),
                sum(len(share.packed) for share in shared.values()),
                best,
            )


def _counts(packed: PackedBatch) -> dict[str, float]:
    positions, segments = packed.arrays["positions"], packed.arrays["segment_ids"]
    # 1 + 3 + 5 + ... over the positions of a text is its length squared.
    pairs = int(np.sum((2 * positions.astype(np.int64) + 1)[segments > 0]))
    return {**packed.metrics, "cells": segments.size, "token_pairs": pairs}
