"""Cross-entropy of a tied head over a large vocabulary, without [T, V] logits in memory: the public face."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from pplx_jax.kernels.vocab_cross_entropy import chunked
from pplx_jax.parallel.rules import MESH_AXES, mesh_axes, parameter_axes, spec

BLOCK = 1024  # positions that have their logits in memory at a time


def vocab_cross_entropy(
    hidden: ArrayLike, embedding: ArrayLike, targets: ArrayLike, weights: ArrayLike, block: int = BLOCK
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the cross-entropies of all positions.

    Within `jax.set_mesh` every device takes a share of the positions and the whole table, which is gathered in the
    precision of `hidden`; so no axis of the mesh has to divide the vocabulary. Gradients of the table are added up in
    float32 and go back to where its parts lie.

    Args:
      hidden: [..., D].
      embedding: [V, D].
      targets: [...] ids.
      weights: [...]; a position of weight 0 costs nothing.
      block: positions at a time.

    Returns:
      The sum of weights * cross-entropy, differentiable in `hidden`, `embedding` and `weights`; and the cross-entropy
      [...] of each position in nats (0 where its weight is 0), for metrics and without a gradient. Both float32.
    """
    hidden, embedding, targets, weights = (jnp.asarray(array) for array in (hidden, embedding, targets, weights))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or targets.ndim != 2:
        return _flat(hidden, embedding, targets, weights, block, PartitionSpec())

    def local(hidden, embedding, targets, weights):
        loss, each = _flat(hidden, embedding, targets, weights, block, table)
        return jax.lax.psum(loss, sharing) if sharing else loss, each

    table = spec(parameter_axes("embed.embedding", 2), embedding.shape, mesh)
    rows, tokens = _positions(targets.shape, mesh)
    positions, sharing = PartitionSpec(rows or None, tokens or None), rows + tokens
    specs = (PartitionSpec(*positions, None), table, positions, positions)
    return jax.shard_map(local, in_specs=specs, out_specs=(PartitionSpec(), positions), check_vma=False)(
        hidden, embedding, targets, weights
    )


def _positions(shape: tuple[int, ...], mesh) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Axes for rows, as ever, and for tokens: all that rows leave, as far as these divide them."""
    rows = mesh_axes("rows", mesh)
    if shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()
    tokens, size = [], shape[1]
    for axis in (*mesh_axes("tokens", mesh), *MESH_AXES):
        if axis not in (*rows, *tokens) and mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0:
            tokens.append(axis)
            size //= mesh.shape[axis]
    return rows, tuple(tokens)


def _flat(hidden, embedding, targets, weights, block: int, table: PartitionSpec):
    loss, each = chunked.vocab_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), embedding, targets.reshape(-1), weights.reshape(-1), block, table
    )
    return loss, each.reshape(targets.shape)
