"""Which part of every global batch a process reads and packs, and how the parts become one array over all devices.

A batch is packed in `groups` of equal size, each in rows of its own, so that what is packed together does not depend on
how many processes share the work: with 8 groups, 1, 2, 4 and 8 processes see the same rows.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.examples import Examples, Selection
from pplx_jax.data.batches.packed_batch import PackedBatch
from pplx_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class Share:
    """Part `index` of `count` equal parts of every batch; several processes may read the same part, if a part of the
    mesh that does not divide the rows lies across them."""

    index: int
    count: int


def own_share(rows: jax.sharding.Sharding, shape: tuple[int, ...]) -> Share:
    """The part of the rows that the devices of this process hold.

    Args:
      rows: sharding of an array of rows.
      shape: its global shape.

    Raises:
      BadInput: no device of this process is in the mesh, or they hold rows that do not lie together.
    """
    places = [at for at in rows.addressable_devices_indices_map(shape).values() if at is not None]
    held = {at[0].indices(shape[0])[:2] for at in places}
    if not held:
        raise BadInput(
            f"process {jax.process_index()} has no device in the mesh; make the mesh as large as all devices together"
        )
    first, last = min(start for start, _ in held), max(stop for _, stop in held)
    together = sum(stop - start for start, stop in held) == last - first
    if not together or shape[0] % (last - first) or first % (last - first):
        raise BadInput(
            f"process {jax.process_index()}'s devices hold rows {sorted(held)} of {shape[0]}, which do not lie "
            "together; let the mesh's outer axes be the ones that go across processes"
        )
    return Share(first // (last - first), shape[0] // (last - first))


class BatchReader:
    """Packs this process's share of a batch; call it with what `Examples.select` gives of the share.

    Args:
      stage: whose features.
      examples: of the stage.
      share: of every batch.
      groups: parts of a batch that are packed apart; more where the shares could not divide them.
      row_shards: devices that the rows are spread over; all hold equally many.

    Raises:
      BadInput: the batch does not divide.
    """

    def __init__(self, stage: Stage, examples: Examples, share: Share, groups: int, row_shards: int):
        self._stage, self._examples, self._share = stage, examples, share
        self._groups = math.lcm(groups, share.count)
        if self._groups != groups:
            logging.warning(
                "%s: a batch is packed in %d groups instead of %d, for %d processes share it; set "
                "Training.packing_groups=%d for the same rows on fewer",
                stage.name,
                self._groups,
                groups,
                share.count,
                self._groups,
            )
        if stage.batch_size % self._groups:
            raise BadInput(
                f"{stage.name}: a batch of {stage.batch_size} cannot be packed in {self._groups} equal groups "
                f"(Training.packing_groups, shared by {share.count} processes); make batch_size a multiple of it"
            )
        grouped = stage
        if self._groups > 1:
            grouped = dataclasses.replace(stage, batch_size=stage.batch_size // self._groups)  # type: ignore[type-var]
        self._rows = examples.rows(grouped, multiple_of=row_shards // math.gcd(row_shards, self._groups))

    def __call__(self, selection: Selection) -> PackedBatch:
        own = self._groups // self._share.count
        parts = []
        for group, part in enumerate(np.split(np.arange(len(selection.row)), own), self._share.index * own):
            chosen = Selection(selection.table[part], selection.row[part], selection.group)
            first_row = group * self._rows[selection.group]
            parts.append(self._examples.batch(self._stage, chosen, self._rows, first_row=first_row))
        arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        tokens, cut = (sum(part.metrics[name] for part in parts) for name in ("tokens", "cut_tokens"))
        # 1 + 3 + 5 + ... over the positions of a text is its length squared.
        pairs = int(np.sum((2 * arrays["positions"].astype(np.int64) + 1)[arrays["segment_ids"] > 0]))
        return PackedBatch(
            arrays, {"tokens": tokens, "cut_tokens": cut, "fill": tokens / arrays["tokens"].size, "token_pairs": pairs}
        )


def placer(sharding: Any, share: Share) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
    """Puts shares on the devices, as the global arrays that they are parts of."""
    if jax.process_count() == 1:
        return lambda arrays: jax.device_put(arrays, sharding)

    def place(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(
                sharding, array, (array.shape[0] * share.count, *array.shape[1:])
            )
            for name, array in arrays.items()
        }

    return place
