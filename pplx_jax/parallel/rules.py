"""Names for the axes of arrays, and the table by which a named axis lies on axes of the mesh."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import PartitionSpec

# Outermost first. Neighbours along the last axes talk the most and lie closest.
MESH_AXES = ("slice", "data", "fsdp", "tensor", "sequence")

# Of activations, then of parameters: what `constrain` and `PARAMETER_AXES` may say.
ACTIVATION_AXES = ("rows", "tokens")
LOGICAL_AXES = (*ACTIVATION_AXES, "layers", "vocab", "embed", "heads", "kv_heads", "mlp", "norm")

# The end of a parameter's path -> its axes. Blocks are stacked on a leading "layers".
PARAMETER_AXES = {
    "embed.embedding": ("vocab", "embed"),
    "head.embedding": ("vocab", "embed"),
    "attention.q.kernel": ("layers", "embed", "heads"),
    "attention.k.kernel": ("layers", "embed", "kv_heads"),
    "attention.v.kernel": ("layers", "embed", "kv_heads"),
    "attention.o.kernel": ("layers", "heads", "embed"),
    "attention.q_norm.scale": ("layers", "norm"),
    "attention.k_norm.scale": ("layers", "norm"),
    "mlp.gate.kernel": ("layers", "embed", "mlp"),
    "mlp.up.kernel": ("layers", "embed", "mlp"),
    "mlp.down.kernel": ("layers", "mlp", "embed"),
    "layers.input_norm.scale": ("layers", "norm"),
    "layers.post_attention_norm.scale": ("layers", "norm"),
    "final_norm.scale": ("norm",),
}

Rules = tuple[tuple[str, tuple[str, ...]], ...]

# gin/meshes/rules.gin says the same, for presets to read and alter; what is not named is replicated.
RULES: Rules = (
    ("rows", ("slice", "data", "fsdp")),
    ("tokens", ("sequence",)),
    ("embed", ("fsdp", "sequence")),
    ("vocab", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
)

_current: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)


@contextlib.contextmanager
def using(rules: Rules) -> Iterator[None]:
    """Arrays are laid out by these rules meanwhile."""
    token = _current.set(rules)
    try:
        yield
    finally:
        _current.reset(token)


def parameter_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """Logical axes of the leaf at a dotted path, by the end of it; nameless where no entry fits or the rank differs."""
    found = next((axes for end, axes in PARAMETER_AXES.items() if path.endswith(end)), ())
    return found if len(found) == rank else (None,) * rank


def mesh_axes(name: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The axes of the mesh, longer than 1, that a logical axis lies on."""
    return tuple(axis for axis in dict(_current.get()).get(name, ()) if mesh.shape.get(axis, 1) > 1)


def shards(name: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts the mesh cuts a logical axis."""
    count = 1
    for axis in mesh_axes(name, mesh):
        count *= mesh.shape[axis]
    return count


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh) -> PartitionSpec:
    """How an array of these logical axes lies on the mesh.

    An axis lies on the longest beginning of its mesh axes that divides it, less those that an axis before it has.
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
    """`x`, an activation of these logical axes, laid out by the rules on the mesh that is set; None is replicated."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
