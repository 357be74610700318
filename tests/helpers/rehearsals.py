"""What the tests of rehearsals run in the process of `plan.worker`, where libtpu describes topologies."""

import collections
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.serialization.replica_slices import get_replica_slices

from pplx_jax.checkpoints.process_bytes import bytes_of_processes
from pplx_jax.core.errors import BadInput
from pplx_jax.plan import worker
from pplx_jax.plan.chips import Topology
from pplx_jax.plan.on_topology import Task, build_mesh, topology_devices
from pplx_jax.plan.rehearsal import rehearse
from pplx_jax.training.train_state import state_layout


def in_worker(function: str, *arguments: Any) -> Any:
    """Calls a function of this module in a process that has loaded libtpu."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[1]))
        return worker.call(f"helpers.rehearsals:{function}", *arguments)


def outcomes(tasks: Sequence[Task]) -> list[Any]:
    """Returns the report of each task, or the line that refuses it."""
    found: list[Any] = []
    for task in tasks:
        try:
            found += rehearse([task])
        except BadInput as error:
            found.append(str(error))
    return found


def hosts(topologies: Sequence[Topology]) -> list[list[int]]:
    """Returns the number of chips of each host of each topology."""
    counts = []
    for topology in topologies:
        chips = {(device.process_index, *device.coords) for device in topology_devices(topology)}
        counts.append(list(collections.Counter(host for host, *_ in chips).values()))
    return counts


def written(tasks: Sequence[Task]) -> list[tuple[list[int], list[int]]]:
    """Returns the bytes that each host writes of a stage's state: by our function, and by Orbax's for its arrays."""
    found = []
    for task in tasks:
        devices, training = build_mesh(task), task.training
        with task.mesh.activate(devices):
            layout = state_layout(
                task.config, training.stage, training.optimizer.build(training.steps), devices
            ).arrays()
        ours = bytes_of_processes(layout)
        orbax = [sum(_by_orbax(leaf, host) for leaf in jax.tree.leaves(layout)) for host in ours]
        found.append((list(ours.values()), orbax))
    return found


def _by_orbax(leaf: jax.ShapeDtypeStruct, host: int) -> int:
    shape, copies, own = leaf.sharding.shard_shape(leaf.shape), collections.Counter(), []
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        data = types.SimpleNamespace(shape=shape, size=int(np.prod(shape)))
        if device.process_index == host:
            own.append(types.SimpleNamespace(index=index, replica_id=copies[str(index)], data=data))
        copies[str(index)] += 1
    array = types.SimpleNamespace(
        shape=leaf.shape,
        ndim=len(leaf.shape),
        dtype=leaf.dtype,
        itemsize=leaf.dtype.itemsize,
        sharding=leaf.sharding,
        addressable_shards=own,
    )
    return get_replica_slices(array, replica_id=0, use_replica_parallel=True).nbytes
