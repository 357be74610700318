"""The share of a batch that each process packs and holds, from the order of the devices in the mesh.

A batch is packed in groups of equal size. A process packs the groups that its devices hold a part of. On real TPU
slices its devices are not neighbours in the mesh, so its groups and rows need not be either.
"""

from __future__ import annotations

import fractions
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from pplx_jax.core.errors import BadInput


class Share(NamedTuple):
    """The part of every batch that one process packs.

    Attributes:
        packed: numbers of the groups that it packs, in rising order.
        counted: those of them that it counts; every group is counted by one process.
    """

    packed: list[int]
    counted: list[int]


def shares(sharding: jax.sharding.Sharding, groups: int) -> dict[int, Share]:
    """Returns the share of each process, by process index.

    Args:
        sharding: of the first axis, over the devices of all processes.
        groups: number of equal parts of the first axis that are packed separately.
    """
    count = shard_count(sharding)
    held: dict[int, set[int]] = {}
    counted_by: dict[int, int] = {}
    for device, index in sharding.devices_indices_map((count,)).items():
        start, stop, _ = index[0].indices(count)
        own = range(start * groups // count, -(-stop * groups // count))
        held.setdefault(device.process_index, set()).update(own)
        for group in own:
            counted_by[group] = min(device.process_index, counted_by.get(group, device.process_index))
    return {
        process: Share(sorted(own), [group for group in sorted(own) if counted_by[group] == process])
        for process, own in held.items()
    }


def share_of(process: int, found: Mapping[int, Share]) -> Share:
    """Returns the share of one process.

    Raises:
        BadInput: no device of this process is in the mesh.
    """
    if process not in found:
        raise BadInput(f"process {process} has no device in the mesh; make the mesh as large as all devices together")
    return found[process]


def shard_count(sharding: jax.sharding.Sharding) -> int:
    """Returns the number of parts that the sharding makes of the first axis."""
    devices = len(sharding.device_set)
    return devices // sharding.shard_shape((devices,))[0]


def packed_part(found: Mapping[int, Share]) -> fractions.Fraction:
    """Returns the part of a batch that the busiest process packs."""
    groups = sum(len(share.counted) for share in found.values())
    return fractions.Fraction(max(len(share.packed) for share in found.values()), groups)


def best_groups(sharding: jax.sharding.Sharding, batch_size: int) -> int:
    """Returns the smallest number of groups with which the busiest process packs the least.

    Fewer groups pack more densely; more of them share the work.
    """
    most = shard_count(sharding)
    allowed = [groups for groups in range(1, most + 1) if batch_size % groups == 0]

    return min(allowed, key=lambda groups: (packed_part(shares(sharding, groups)), groups))


def rows_of(parts: Mapping[int, np.ndarray], index: tuple[slice, ...] | None) -> np.ndarray:
    """Returns the rows of one shard.

    Args:
        parts: the packed groups of this process by number, of equal size.
        index: the shard's range of the global first axis; None or a slice without ends for all of it.
    """
    size = len(next(iter(parts.values())))
    start, stop, _ = (index or (slice(None),))[0].indices(size * (1 + max(parts)))
    pieces = [
        parts[group][max(start - group * size, 0) : stop - group * size]
        for group in range(start // size, -(-stop // size))
    ]
    return np.concatenate(pieces)
