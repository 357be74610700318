"""Names for the axes of arrays, and the table that maps a named axis to axes of the mesh."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput

# Outermost first. Devices that are neighbours along the last axes communicate the most and are closest.
MESH_AXES = ("slice", "data", "fsdp", "tensor", "sequence")

# Axes of activations, then of parameters: the names that `constrain` and `PARAMETER_AXES` may use.
ACTIVATION_AXES = ("rows", "tokens")
LOGICAL_AXES = (*ACTIVATION_AXES, "layers", "vocab", "embed", "heads", "kv_heads", "mlp", "norm")

Rules = tuple[tuple[str, tuple[str, ...]], ...]
ParameterAxes = tuple[tuple[str, tuple[str, ...]], ...]

# The end of a parameter's path -> its axes. Blocks are stacked on a leading "layers". `Mesh.parameter_axes` adds the
# parameters of another model family.
PARAMETER_AXES: ParameterAxes = (
    ("embed.embedding", ("vocab", "embed")),
    ("head.embedding", ("vocab", "embed")),
    ("attention.q.kernel", ("layers", "embed", "heads")),
    ("attention.k.kernel", ("layers", "embed", "kv_heads")),
    ("attention.v.kernel", ("layers", "embed", "kv_heads")),
    ("attention.q.bias", ("layers", "heads")),
    ("attention.k.bias", ("layers", "kv_heads")),
    ("attention.v.bias", ("layers", "kv_heads")),
    ("attention.o.kernel", ("layers", "heads", "embed")),
    ("attention.q_norm.scale", ("layers", "norm")),
    ("attention.k_norm.scale", ("layers", "norm")),
    ("mlp.gate.kernel", ("layers", "embed", "mlp")),
    ("mlp.up.kernel", ("layers", "embed", "mlp")),
    ("mlp.down.kernel", ("layers", "mlp", "embed")),
    ("layers.input_norm.scale", ("layers", "norm")),
    ("layers.post_attention_norm.scale", ("layers", "norm")),
    ("final_norm.scale", ("norm",)),
)

# gin/meshes/rules.gin repeats this table, for presets to include and change. An axis without a rule is replicated.
RULES: Rules = (
    ("rows", ("slice", "data", "fsdp")),
    ("tokens", ("sequence",)),
    ("embed", ("fsdp", "sequence")),
    ("vocab", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
)

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)
_parameter_axes: contextvars.ContextVar[ParameterAxes] = contextvars.ContextVar("axes", default=PARAMETER_AXES)


@contextlib.contextmanager
def using(rules: Rules, more_parameters: ParameterAxes = ()) -> Iterator[None]:
    """Applies these rules within a `with` block.

    Args:
      rules: logical axis -> mesh axes.
      more_parameters: end of a parameter's path -> its logical axes; they win over `PARAMETER_AXES`.
    """
    tokens = _rules.set(rules), _parameter_axes.set((*more_parameters, *PARAMETER_AXES))
    try:
        yield
    finally:
        _rules.reset(tokens[0])
        _parameter_axes.reset(tokens[1])


def listed_parameter(path: str) -> tuple[str, tuple[str, ...]]:
    """Returns the entry of `PARAMETER_AXES` for a dotted path: the end of the path and its axes, both empty if none."""
    return next((entry for entry in _parameter_axes.get() if path.endswith(entry[0])), ("", ()))


def parameter_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at a dotted path, found by the end of the path.

    An unlisted scalar or vector has axes without names and is replicated.

    Raises:
      BadInput: a parameter of two or more axes is not listed, or is listed with another number of axes.
    """
    end, axes = listed_parameter(path)
    if len(axes) == rank:
        return axes
    if rank < 2:
        return (None,) * rank
    listed = f"is listed with the {len(axes)} axes {', '.join(axes)} ({end})" if end else "is not listed"
    raise BadInput(
        f"the parameter {path} has {rank} axes and {listed}, so it would be copied to every device; name its axes in "
        f"Mesh.parameter_axes, in a gin file that includes gin/meshes/rules.gin"
    )


def mesh_axes(name: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """Returns the mesh axes, of size 2 or more, over which the rules spread a logical axis."""
    return tuple(axis for axis in dict(_rules.get()).get(name, ()) if mesh.shape.get(axis, 1) > 1)


def shards(name: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts into which the mesh divides a logical axis."""
    count = 1
    for axis in mesh_axes(name, mesh):
        count *= mesh.shape[axis]
    return count


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh) -> PartitionSpec:
    """Returns the partition on the mesh of an array with these logical axes.

    An axis is spread over its mesh axes in order, up to the first one that does not divide its size or that an earlier
    axis of the array uses already.
    """
    entries, used = [], set()
    for name, size in zip(axes, shape, strict=True):
        chosen: list[str] = []
        for axis in () if name is None else mesh_axes(name, mesh):
            if axis in used or size % mesh.shape[axis]:
                break
            size //= mesh.shape[axis]
            chosen.append(axis)
        used.update(chosen)
        entries.append(chosen[0] if len(chosen) == 1 else tuple(chosen) or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns the activation `x` laid out by the rules on the current mesh; an axis that is None is replicated."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
