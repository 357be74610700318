"""How many bytes of a checkpoint each process writes: Orbax divides the arrays by their sharding."""

import collections
import functools
import math
from typing import Any

import jax
import numpy as np


def bytes_of_processes(layout: Any) -> dict[int, int]:
    """Returns the bytes that each process writes, before compression, by process index.

    The copies of a shard divide it along its first axis that their number divides. Without such an axis the first copy
    is written whole.

    Args:
      layout: a tree of `jax.ShapeDtypeStruct`s with shardings, as `state_layout` returns it.
    """
    total: collections.Counter[int] = collections.Counter()
    for leaf in jax.tree.leaves(layout):
        for process, size in _elements(leaf.sharding, leaf.shape).items():
            total[process] += size * np.dtype(leaf.dtype).itemsize
    return dict(sorted(total.items()))


@functools.lru_cache(maxsize=4096)  # a parameter and its moments have the same layout
def _elements(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[int, int]:
    copies: dict[tuple, list[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        where = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        copies.setdefault(where, []).append(device.process_index)
    shard = sharding.shard_shape(shape)
    count = len(next(iter(copies.values())))
    divides = any(size % count == 0 for size in shard)
    found = dict.fromkeys((process for holders in copies.values() for process in holders), 0)
    for holders in copies.values():
        for process in holders if divides else holders[:1]:
            found[process] += math.prod(shard) // (count if divides else 1)
    return found
