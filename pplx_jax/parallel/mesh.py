"""Devices as a named mesh, and which axis of each parameter lies on which axis of it."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.parallel.rules import (
    LOGICAL_AXES,
    MESH_AXES,
    RULES,
    Rules,
    mesh_axes,
    parameter_axes,
    shards,
    spec,
    using,
)

REST = -1


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A mesh preset; `gin/meshes/` has the usual ones.

    Attributes:
      slice: slices joined by the data-centre network; each has a copy of the parameters.
      data: copies of the parameters within a slice; each takes a share of the rows.
      fsdp: devices over which one copy of the parameters is spread; each takes a share of the rows too.
      tensor: devices that share each matrix product, and the heads of attention.
      sequence: devices that share the tokens of each row (context parallelism).
      rules: logical axis -> mesh axes, see `parallel.rules`.

    One size may be -1: all devices that the others leave.
    """

    slice: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: Rules = RULES

    def __post_init__(self):
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if any(size < 1 and size != REST for size in sizes) or sizes.count(REST) > 1:
            raise BadInput(f"mesh {self} is none; set each size to 1 or more, one of them to -1 for all that is left")
        for name, axes in self.rules:
            for known, given in ((LOGICAL_AXES, (name,)), (MESH_AXES, axes)):
                if unknown := [axis for axis in given if axis not in known]:
                    raise BadInput(f"Mesh.rules: {unknown[0]!r} is not one of {', '.join(known)}")

    def __str__(self) -> str:
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "of one device"

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of each axis on so many devices.

        Raises:
          BadInput: what is given does not divide the devices that the rest is to be of.
        """
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        given = math.prod(size for size in sizes.values() if size != REST)
        if REST in sizes.values() and (devices < given or devices % given):
            raise BadInput(f"mesh {self}: {given} does not divide {devices} devices; change Mesh.{_largest(sizes)}")
        return {axis: devices // given if size == REST else size for axis, size in sizes.items()}

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over the devices, or over the first of them where it is smaller.

        Neighbours of a TPU's network become neighbours of the mesh; slices are told apart by the devices themselves.

        Raises:
          BadInput: the mesh is larger than the devices at hand, or of other slices.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = self.sizes(len(devices))
        wanted = math.prod(sizes.values())
        if wanted > len(devices):
            raise BadInput(
                f"mesh {self} wants {wanted} devices, this machine has {len(devices)} ({devices[0].platform}); "
                f"lower Mesh.{_largest(sizes)}"
            )
        return jax.sharding.Mesh(_arranged(devices, tuple(sizes.values())), MESH_AXES)

    @contextlib.contextmanager
    def activate(self, devices: jax.sharding.Mesh) -> Iterator[None]:
        """Within it, arrays are laid out on the built mesh by this preset's rules."""
        with jax.set_mesh(devices), using(self.rules):
            yield

    def require(
        self, devices: jax.sharding.Mesh, *, batch_size: int, row_length: int, kv_heads: int, mlp_width: int
    ) -> None:
        """Raises BadInput where the built mesh cannot share a batch, its rows, or the model's heads."""
        with using(self.rules):
            checks = (
                (batch_size, "a batch of {}", "rows", "make the stage's batch_size a multiple"),
                (row_length, "rows of {} tokens", "tokens", "make the stage's row_length a multiple, or lower"),
                (kv_heads, "{} key heads", "kv_heads", "lower"),
                (mlp_width, "an MLP width of {}", "mlp", "lower"),
            )
            for size, what, name, mend in checks:
                if size % shards(name, devices):
                    axes = " x ".join(f"Mesh.{axis}" for axis in mesh_axes(name, devices))
                    raise BadInput(
                        f"{what.format(size)} cannot be shared by {shards(name, devices)} devices ({axes}); {mend} "
                        f"{'of ' if mend.endswith('multiple') else ''}{axes}"
                    )


def _largest(sizes: dict[str, int]) -> str:
    return max(sizes, key=lambda axis: sizes[axis])


def _arranged(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    wanted, slices = math.prod(shape), shape[0]
    found = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if devices[0].platform != "tpu" or wanted < len(devices):
        return np.array(devices[:wanted]).reshape(shape)
    if found != slices:
        raise BadInput(f"a mesh of {slices} slices on devices of {found}; set Mesh.slice={found}")
    if slices > 1:
        inner = (1, *shape[1:])
        outer = (slices, *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows spread over the devices that do not share them."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes("rows", mesh) or None))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_sharding(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of the leaf at a dotted path; one that no rule names is replicated.

    The leaf is recognised by the end of its path, so moments lie where their parameters do. An axis its mesh axes
    do not divide is replicated.
    """
    return NamedSharding(mesh, spec(parameter_axes(path, len(shape)), shape, mesh))


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`leaf_sharding` of each leaf of a parameter tree, or of an optimizer state that mirrors one."""

    def of(path, leaf) -> NamedSharding:
        return leaf_sharding(jax.tree_util.keystr(path, simple=True, separator="."), np.shape(leaf), mesh)

    return jax.tree_util.tree_map_with_path(of, tree)
