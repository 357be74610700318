"""Devices as a named mesh, and which axis of each parameter lies on which axis of it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.errors import BadInput

# Parameter path suffix -> logical axes. Blocks carry a leading "layers" axis.
LOGICAL_AXES = {
    "embed.embedding": ("vocab", "embed"),
    "head.embedding": ("vocab", "embed"),
    "attention.q.kernel": ("layers", "embed", "heads"),
    "attention.k.kernel": ("layers", "embed", "kv_heads"),
    "attention.v.kernel": ("layers", "embed", "kv_heads"),
    "attention.o.kernel": ("layers", "heads", "embed"),
    "mlp.gate.kernel": ("layers", "embed", "mlp"),
    "mlp.up.kernel": ("layers", "embed", "mlp"),
    "mlp.down.kernel": ("layers", "mlp", "embed"),
}
# Logical axis -> mesh axis; what is not named is replicated.
RULES = {"embed": "fsdp"}
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A mesh preset.

    Attributes:
      data: replicas of the parameters; each takes a share of the rows.
      fsdp: devices over which one copy of the parameters is spread; each takes a share of the rows too.
    """

    data: int = 1
    fsdp: int = 1

    def __post_init__(self):
        if min(self.data, self.fsdp) < 1:
            raise BadInput(f"mesh data={self.data} x fsdp={self.fsdp} has no device; set both to 1 or more")

    def build(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The mesh over the first data * fsdp devices.

        Raises:
          BadInput: the mesh is larger than the devices at hand.
        """
        devices = jax.devices() if devices is None else devices
        wanted = self.data * self.fsdp
        if wanted > len(devices):
            raise BadInput(
                f"mesh data={self.data} x fsdp={self.fsdp} wants {wanted} devices, this machine has "
                f"{len(devices)} ({devices[0].platform}); lower Mesh.data or Mesh.fsdp"
            )
        return jax.sharding.Mesh(np.array(devices[:wanted]).reshape(self.data, self.fsdp), BATCH_AXES)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows spread over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_sharding(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of the leaf at a dotted path; one that no rule names is replicated.

    The leaf is recognised by the end of its path, so moments lie where their parameters do. An axis its mesh axis
    does not divide is replicated.
    """
    axes = next((axes for suffix, axes in LOGICAL_AXES.items() if path.endswith(suffix)), ())
    spec = [RULES.get(axis) for axis in axes] if len(axes) == len(shape) else []
    fitted = [
        axis if axis is None or size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*fitted))


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`leaf_sharding` of each leaf of a parameter tree, or of an optimizer state that mirrors one."""

    def of(path, leaf) -> NamedSharding:
        return leaf_sharding(jax.tree_util.keystr(path, simple=True, separator="."), np.shape(leaf), mesh)

    return jax.tree_util.tree_map_with_path(of, tree)
