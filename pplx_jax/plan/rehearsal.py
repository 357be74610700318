"""Walks the start of every host of a topology: what each one would hold, pack and write, or why it would refuse."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.process_bytes import bytes_of_processes
from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import dotted
from pplx_jax.data.batches.shares import Share, best_groups, packed_part, rows_of, shard_count, share_of, shares
from pplx_jax.parallel.mesh import batch_sharding
from pplx_jax.parallel.model_info import bytes_on_chip
from pplx_jax.parallel.rules import shards
from pplx_jax.plan.longest_texts import LongestBatch, longest_batch
from pplx_jax.plan.on_topology import Task, build_mesh, topology_devices
from pplx_jax.training.stage_check import check_stage
from pplx_jax.training.train_state import TrainState, laid_out, model_params, state_shapes

_LARGE = 1 << 20  # bytes of a parameter whose copies are worth a line
_BATCHES = 4  # in the memory of a host: the one in use, two that are ready, one that is being packed


def rehearse(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Returns what the hosts do at the start of each stage; allocates no array on a device and compiles nothing.

    Raises:
      BadInput: what a host would raise, after the name of the stage.
    """
    reports = []
    for task in tasks:
        try:
            reports.append(_rehearse(task))
        except BadInput as error:
            raise BadInput(f"{task.training.stage.name}: {error}") from error
    return reports


def _rehearse(task: Task) -> dict[str, Any]:
    training, spec, groups = task.training, task.training.stage.batch, task.training.packing_groups
    every = topology_devices(task.topology)
    devices = task.mesh.build(every)
    check_stage(training, task.config, devices, task.mesh)
    with task.mesh.activate(devices):
        placement = batch_sharding(devices)
        shared = shares(placement, groups)
        own = {host: share_of(host, shared) for host in sorted({device.process_index for device in every})}
        build_mesh(task)  # a chip must not be idle, even where its host has work
        batch = longest_batch(training, task.lengths, shards("rows", devices))
        layout = laid_out(_state_shapes(task), devices)
        hbm = _bytes_of_device(task, layout, batch, placement, devices)
        hosts = _hosts(every, devices, own, layout, batch, placement)
        copied = _large_copies(model_params(layout.params), devices)
        best = best_groups(placement, spec.batch_size)
        parts = {number: float(packed_part(shares(placement, number))) for number in (groups, best)}
    chip, host_limit = task.topology.chip, task.topology.host_bytes
    return {
        "stage": training.stage.name,
        "topology": str(task.topology),
        "mesh_sizes": dict(devices.shape),
        "chips": devices.size,
        "batch_size": spec.batch_size,
        "rows": batch.sequences,
        "row_length": spec.length,
        "row_shards": shard_count(placement),
        "packing_groups": groups,
        "packed_by_busiest_host": parts[groups],
        "best_packing_groups": best if parts[best] < parts[groups] else groups,
        "packed_by_busiest_host_at_best": parts[best],
        "hbm": hbm,
        "hbm_bytes_per_chip": sum(hbm.values()),
        "hbm_limit_bytes": chip.hbm_limit_bytes,
        "host_bytes": max(host["memory_bytes"] for host in hosts),
        "host_limit_bytes": host_limit,
        "checkpoint_bytes": sum(host["bytes_written"] for host in hosts),
        "copied_parameters": copied,
        "fits": sum(hbm.values()) <= chip.hbm_limit_bytes and max(host["memory_bytes"] for host in hosts) <= host_limit,
        "hosts": hosts,
    }


_shapes: dict[str, TrainState] = {}


def _state_shapes(task: Task) -> TrainState:
    """Returns the shapes of the state; they are the same on every mesh."""
    training, key = task.training, repr((task.config, task.training))
    if key not in _shapes:
        _shapes[key] = state_shapes(task.config, training.stage, training.optimizer.build(training.steps), training.ema)
    return _shapes[key]


def _hosts(
    every: Sequence[Any],
    devices: jax.sharding.Mesh,
    own: dict[int, Share],
    layout: TrainState,
    batch: LongestBatch,
    placement: jax.sharding.Sharding,
) -> list[dict[str, Any]]:
    """Returns what each host has and does, in the order of the hosts."""
    groups = sum(len(share.counted) for share in own.values())
    held, written = _rows_of_hosts(placement, own, batch.sequences // groups), bytes_of_processes(layout.arrays())
    batch_bytes = sum(math.prod(array.shape) * array.dtype.itemsize for array in batch.arrays.values())
    weights = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model_params(layout.params)))
    found = []
    for host, share in own.items():
        packed = len(share.packed) * batch_bytes // groups
        # At the start, the weights of an earlier stage, whole; later, the copy of the state that is being saved.
        found.append(
            {
                "host": host,
                "slice": next(getattr(one, "slice_index", None) or 0 for one in every if one.process_index == host),
                "devices": [int(one.id) for one in every if one.process_index == host],
                "mesh_places": [n for n, one in enumerate(devices.devices.flat) if one.process_index == host],
                "rows": _joined(held[host]),
                "groups": _joined([(group, group + 1) for group in share.packed]),
                "packed_part": len(share.packed) / groups,
                "bytes_written": written[host],
                "memory_bytes": max(written[host], weights) + _BATCHES * packed,
            }
        )
    return found


def _rows_of_hosts(
    placement: jax.sharding.Sharding, own: dict[int, Share], group_rows: int
) -> dict[int, list[tuple[int, int]]]:
    """Returns the ranges of rows on the devices of each host, as (start, stop).

    A host takes them from the groups that it has packed, by the function that places its batches.
    """
    held: dict[int, set[tuple[int, int]]] = {host: set() for host in own}
    count = group_rows * sum(len(share.counted) for share in own.values())
    packed = {
        host: {group: np.arange(group * group_rows, (group + 1) * group_rows) for group in share.packed}
        for host, share in own.items()
    }
    for device, index in placement.devices_indices_map((count,)).items():
        rows = rows_of(packed[device.process_index], index)
        start, stop, _ = index[0].indices(count)
        if not np.array_equal(rows, np.arange(start, stop)):
            raise AssertionError(f"host {device.process_index} packs other rows than {start} to {stop}")
        held[device.process_index].add((start, stop))
    return {host: sorted(ranges) for host, ranges in held.items()}


def _bytes_of_device(
    task: Task,
    layout: TrainState,
    batch: LongestBatch,
    placement: jax.sharding.Sharding,
    mesh: jax.sharding.Mesh,
) -> dict[str, int]:
    """Returns the bytes that a chip needs at least at the same time, by kind.

    The activations within a block and the buffers of collectives come on top: only a compilation knows them.
    """
    config = task.config
    params = sum(map(bytes_on_chip, jax.tree.leaves(layout.params)))
    arrays = [jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=placement) for one in batch.arrays.values()]
    tokens = batch.sequences * task.training.stage.batch.length // shards("rows", mesh) // shards("tokens", mesh)
    at_once = tokens // getattr(task.training.stage, "microbatches", 1)
    return {
        "parameters": params,
        "optimizer": sum(map(bytes_on_chip, jax.tree.leaves(layout.optimizer))),
        **({"average": params} if task.training.ema else {}),
        "gradients": params,
        "batch": sum(map(bytes_on_chip, arrays)),
        "inputs_of_blocks": at_once * config.width * config.layers * np.dtype(config.dtype).itemsize,
    }


def _large_copies(params: Any, mesh: jax.sharding.Mesh) -> list[dict[str, Any]]:
    """Returns the large parameters that one copy of the model holds more than once, largest first.

    Devices along `slice` and `data` have copies of the model; those are not counted.
    """
    of_model = mesh.size // (mesh.shape["slice"] * mesh.shape["data"])
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = bytes_on_chip(leaf)
        copies = size * of_model // (math.prod(leaf.shape) * leaf.dtype.itemsize)
        if copies > 1 and size >= _LARGE:
            found.append({"parameter": dotted(path), "copies": copies, "bytes_a_chip": size})
    return sorted(found, key=lambda one: -one["bytes_a_chip"])


def _joined(parts: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Returns ranges (start, stop) as [first, last], neighbours joined."""
    joined: list[list[int]] = []
    for start, stop in parts:
        if joined and joined[-1][1] + 1 == start:
            joined[-1][1] = stop - 1
        else:
            joined.append([start, stop - 1])
    return joined
