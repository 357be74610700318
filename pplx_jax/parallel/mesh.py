"""Devices as a named mesh, and the sharding of each parameter on it."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import dotted
from pplx_jax.parallel.rules import (
    LOGICAL_AXES,
    MESH_AXES,
    RULES,
    ParameterAxes,
    Rules,
    listed_parameter,
    mesh_axes,
    parameter_axes,
    shards,
    spec,
    using,
)

REST = -1


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The sizes of a mesh and the rules for sharding on it. `gin/meshes/` has the usual presets.

    Attributes:
      slice: slices joined by the data-centre network; each one has a copy of the parameters.
      data: copies of the parameters within a slice; each one takes a share of the sequences.
      fsdp: devices over which one copy of the parameters is spread; each one takes a share of the sequences too.
      tensor: devices that share each matrix product and the heads of attention.
      sequence: devices that share the tokens of each sequence (context parallelism).
      rules: logical axis -> mesh axes, see `parallel.rules`.
      parameter_axes: end of a parameter's path -> one name for each of its axes, for parameters that
        `parallel.rules.PARAMETER_AXES` does not list. A name that occurs here may also have a rule.

    One size may be -1: all devices that the other axes leave.
    """

    slice: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: Rules = RULES
    parameter_axes: ParameterAxes = ()

    def __post_init__(self):
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if any(size < 1 and size != REST for size in sizes) or sizes.count(REST) > 1:
            raise BadInput(
                f"mesh {self}: an axis has no valid size; set each size to 1 or more, one of them to -1 for all "
                "remaining devices"
            )
        logical = dict.fromkeys([*LOGICAL_AXES, *(name for _, names in self.parameter_axes for name in names)])
        for name, axes in self.rules:
            for known, given in ((logical, (name,)), (MESH_AXES, axes)):
                if unknown := [axis for axis in given if axis not in known]:
                    raise BadInput(f"Mesh.rules: {unknown[0]!r} is not one of {', '.join(known)}")

    def __str__(self) -> str:
        return mesh_text({axis: getattr(self, axis) for axis in MESH_AXES})

    def sizes(self, devices: int) -> dict[str, int]:
        """Returns the size of each axis on this number of devices.

        Raises:
          BadInput: the given sizes do not divide the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        given = math.prod(size for size in sizes.values() if size != REST)
        if REST in sizes.values() and (devices < given or devices % given):
            raise BadInput(f"mesh {self}: {given} does not divide {devices} devices; change Mesh.{_largest(sizes)}")
        return {axis: devices // given if size == REST else size for axis, size in sizes.items()}

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over the devices, or over the first ones if it needs fewer.

        Neighbours in a TPU's network become neighbours in the mesh. Devices know the slice that they belong to.

        Raises:
          BadInput: the mesh needs more devices than there are, or another number of slices.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = self.sizes(len(devices))
        needed = math.prod(sizes.values())
        if needed > len(devices):
            raise BadInput(
                f"mesh {self} needs {needed} devices, this machine has {len(devices)} ({devices[0].platform}); "
                f"lower Mesh.{_largest(sizes)}"
            )
        return jax.sharding.Mesh(_arranged(devices, tuple(sizes.values())), MESH_AXES)

    @contextlib.contextmanager
    def activate(self, devices: jax.sharding.Mesh) -> Iterator[None]:
        """Lays arrays out on the built mesh by the rules of this preset, within a `with` block."""
        with jax.set_mesh(devices), using(self.rules, self.parameter_axes):
            yield

    def require(
        self, devices: jax.sharding.Mesh, *, batch_size: int, row_length: int, kv_heads: int, mlp_width: int
    ) -> None:
        """Raises BadInput if the built mesh cannot divide the batch, its sequences, or the model's heads or MLP."""
        with using(self.rules, self.parameter_axes):
            checks = (
                (batch_size, "a batch of {}", "rows", "make the stage's batch_size a multiple"),
                (row_length, "rows of {} tokens", "tokens", "make the stage's row_length a multiple, or lower"),
                (kv_heads, "{} key heads", "kv_heads", "lower"),
                (mlp_width, "an MLP width of {}", "mlp", "lower"),
            )
            for size, what, name, fix in checks:
                if size % shards(name, devices):
                    axes = " x ".join(f"Mesh.{axis}" for axis in mesh_axes(name, devices))
                    raise BadInput(
                        f"{what.format(size)} cannot be shared by {shards(name, devices)} devices ({axes}); {fix} "
                        f"{'of ' if fix.endswith('multiple') else ''}{axes}"
                    )


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Returns the sizes of the mesh axes as text, such as "data=2 x fsdp=4", without the axes of size 1."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "of one device"


def _largest(sizes: dict[str, int]) -> str:
    return max(sizes, key=lambda axis: sizes[axis])


def _arranged(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    needed, slices = math.prod(shape), shape[0]
    found = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if devices[0].platform != "tpu" or needed < len(devices):
        return np.array(devices[:needed]).reshape(shape)
    if found != slices:
        raise BadInput(f"a mesh of {slices} slices on devices of {found}; set Mesh.slice={found}")
    if slices > 1:
        inner = (1, *shape[1:])
        outer = (slices, *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its sequences are spread over the devices that hold different ones."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes("rows", mesh) or None))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of an array that is the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_sharding(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of the parameter at a dotted path.

    The end of the path identifies it, so optimizer moments are sharded like their parameters. An axis that its mesh
    axes do not divide is replicated, with a warning.

    Raises:
      BadInput: as `parameter_axes`.
    """
    axes = parameter_axes(path, len(shape))
    partition = spec(axes, shape, mesh)
    used = {axis for entry in partition for axis in ((entry,) if isinstance(entry, str) else entry or ())}
    for name, size in zip(axes, shape, strict=True):
        unused = [f"{axis}={mesh.shape[axis]}" for axis in mesh_axes(name, mesh) if axis not in used] if name else []
        if unused:
            _warn_replicated(listed_parameter(path)[0], name, size, " x ".join(unused))
    return NamedSharding(mesh, partition)


@functools.cache  # a parameter and its moments give one warning
def _warn_replicated(end: str, axis: str, size: int, mesh_sizes: str) -> None:
    logging.warning(
        "parameter %s: the mesh axes %s do not divide its axis %s of size %d, so each of their devices holds all of it",
        end,
        mesh_sizes,
        axis,
        size,
    )


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns `leaf_sharding` of each leaf of a parameter tree, or of an optimizer state with the same paths."""

    def of(path, leaf) -> NamedSharding:
        return leaf_sharding(dotted(path), np.shape(leaf), mesh)

    return jax.tree_util.tree_map_with_path(of, tree)
