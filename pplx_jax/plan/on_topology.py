"""The devices of a topology that is not here, as libtpu describes it, and the mesh of a stage on them."""

import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import topologies

from pplx_jax.core.errors import BadInput
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.plan.chips import Topology
from pplx_jax.recipes.recipe import Lengths
from pplx_jax.training.settings import Training
from pplx_jax.training.stage_check import check_stage


@dataclasses.dataclass(frozen=True)
class Task:
    """A stage and the devices that it is planned for."""

    training: Training
    model: Qwen3Config
    mesh: Mesh
    lengths: Lengths
    topology: Topology

    @property
    def config(self) -> Qwen3Config:
        """The encoder as the stage trains it."""
        return self.training.model(self.model)


@functools.cache
def topology_devices(topology: Topology) -> tuple[Any, ...]:
    """Returns the descriptions of all devices, in the order of `jax.devices()` on that topology.

    Raises:
      BadInput: libtpu does not know the topology.
    """
    options: dict[str, Any] = {} if topology.num_slices == 1 else {"num_slices": topology.num_slices}
    if topology.is_one_host:
        options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:
        why = str(error).splitlines()[0]
        raise BadInput(f"--topology {topology}: libtpu knows none of this size: {why}") from error
    return tuple(description.devices)


def build_mesh(task: Task) -> jax.sharding.Mesh:
    """Returns the mesh of the stage on all devices of the topology.

    Raises:
      BadInput: as `topology_devices`, `Mesh.build` and `check_stage`, or the mesh leaves devices unused.
    """
    devices = topology_devices(task.topology)
    built = task.mesh.build(devices)
    check_stage(task.training, task.config, built, task.mesh)
    if built.size < len(devices):
        raise BadInput(
            f"mesh {task.mesh} uses {built.size} of the {len(devices)} chips of {task.topology}; "
            "set one size to -1 to take the rest"
        )
    return built
