"""Cross-entropy over a large vocabulary without [T, V] logits in memory: the public function, which chooses an
implementation."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.platform import by_platform, device_kind, platform
from pplx_jax.kernels.vocab_cross_entropy import chunked, pallas
from pplx_jax.kernels.vocab_cross_entropy.compaction import Loss
from pplx_jax.parallel.collectives import all_gather_parts, scatter_sum
from pplx_jax.parallel.rules import MESH_AXES, mesh_axes, parameter_axes, spec

Implementation = Literal["chunked", "pallas"]


def vocab_cross_entropy(
    hidden: ArrayLike,
    embedding: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike,
    *,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of weights * cross-entropy of `targets` under softmax(hidden @ embedding^T).

    Positions with weight 0 cost almost nothing: the others are compacted and computed one chunk at a time, by Pallas
    kernels on a TPU and by XLA elsewhere. Within `jax.set_mesh` each device computes a part of the positions against
    the whole table, which is gathered in the precision of `hidden`, so that no mesh axis has to divide the vocabulary.
    Devices exchange the table and its gradient, which is summed in float32, but no logits.

    Args:
      hidden: [..., D].
      embedding: [V, D]; products have inputs of the dtype of `hidden`.
      targets: [...] integers in [0, V); the loss of any other is NaN.
      weights: [...]; differentiable where not 0. A position with weight 0 is skipped, and has a gradient of 0.
      implementation: the implementation to use.

    Returns:
      The sum, a float32 scalar, differentiable in `hidden`, `embedding` and `weights`; and the cross-entropy [...] of
      each position in nats (0 where its weight is 0), float32, for metrics and without a gradient.

    Raises:
      BadInput: the implementation is unknown or cannot run here.
    """
    if implementation not in (None, *get_args(Implementation)):
        raise BadInput(
            f"vocab_cross_entropy: implementation {implementation!r} is not one of "
            f"{', '.join(get_args(Implementation))}"
        )
    if implementation == "pallas" and platform() != "tpu":
        raise BadInput(
            f"vocab_cross_entropy: implementation 'pallas' needs a TPU, this is {jax.default_backend()}; leave it out, "
            "or call pallas.losses(interpret=True) to try it"
        )
    hidden, embedding, targets, weights = (jnp.asarray(array) for array in (hidden, embedding, targets, weights))
    shape = targets.shape if targets.ndim == 2 else (1, targets.size)
    hidden, weights = hidden.reshape(*shape, hidden.shape[-1]), weights.astype(jnp.float32)
    targets = jnp.where(targets < 0, embedding.shape[0], targets).astype(jnp.int32).reshape(shape)
    loss, each = _vocab_cross_entropy(hidden, embedding, targets, weights.reshape(shape), implementation)
    return loss, each.reshape(weights.shape)


def _positions(shape: tuple[int, ...], mesh) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns mesh axes for sequences, and for tokens: all axes that remain, as far as they divide the tokens."""
    rows = mesh_axes("rows", mesh)
    if shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()
    tokens, size = [], shape[1]
    for axis in (*mesh_axes("tokens", mesh), *MESH_AXES):
        if axis not in (*rows, *tokens) and mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0:
            tokens.append(axis)
            size //= mesh.shape[axis]
    return rows, tuple(tokens)


def _on_mesh(
    hidden, embedding, targets, weights, *, with_gradient: bool, implementation: Implementation | None
) -> Loss:
    """Runs the implementation on each device's positions [B, L], and sums over the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    partition = PartitionSpec() if alone else spec(parameter_axes("embed.embedding", 2), embedding.shape, mesh)
    rows, tokens = ((), ()) if alone else _positions(targets.shape, mesh)
    position_axes, table_axes = rows + tokens, jax.tree.leaves(tuple(partition))
    # Devices along these axes compute the same positions.
    copies = math.prod(mesh.shape[axis] for axis in table_axes if axis not in position_axes)
    only_positions = tuple(axis for axis in position_axes if axis not in table_axes)

    def each(hidden, embedding, targets, weights, *, module, **more) -> Loss:
        table = all_gather_parts(embedding.astype(hidden.dtype), partition)
        flat = (hidden.reshape(-1, hidden.shape[-1]), table, targets.reshape(-1), weights.reshape(-1))
        found = module.losses(*flat, with_gradient=with_gradient, **more)
        hidden_gradient, table_gradient = found.hidden_gradient, found.table_gradient
        if with_gradient:
            hidden_gradient = hidden_gradient.reshape(hidden.shape)
            table_gradient = scatter_sum(table_gradient / copies, partition)
            table_gradient = jax.lax.psum(table_gradient, only_positions) if only_positions else table_gradient
        loss = jax.lax.psum(found.loss, position_axes) if position_axes else found.loss
        return Loss(loss, found.cross_entropy.reshape(targets.shape), hidden_gradient, table_gradient)

    kernel = functools.partial(each, module=pallas, device_kind=device_kind())
    xla = functools.partial(each, module=chunked)

    def chosen(*arguments) -> Loss:
        if implementation is None:
            return by_platform(*arguments, tpu=kernel, default=xla)
        return {"pallas": kernel, "chunked": xla}[implementation](*arguments)

    if alone:
        return chosen(hidden, embedding, targets, weights)
    positions = PartitionSpec(rows or None, tokens or None)
    wide = PartitionSpec(*positions, None)
    out = Loss(PartitionSpec(), positions, wide if with_gradient else None, partition if with_gradient else None)
    specs = (wide, partition, positions, positions)
    return jax.shard_map(chosen, in_specs=specs, out_specs=out, check_vma=False)(hidden, embedding, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _vocab_cross_entropy(hidden, embedding, targets, weights, implementation):
    found = _on_mesh(hidden, embedding, targets, weights, with_gradient=False, implementation=implementation)
    return found.loss, found.cross_entropy


def _forward(hidden, embedding, targets, weights, implementation):
    found = _on_mesh(hidden, embedding, targets, weights, with_gradient=True, implementation=implementation)
    embedding_gradient = found.table_gradient.astype(embedding.dtype)
    return (found.loss, found.cross_entropy), (found.hidden_gradient, embedding_gradient, found.cross_entropy)


def _backward(implementation, residual, cotangents):
    del implementation
    hidden_gradient, embedding_gradient, cross_entropy = residual
    scale = cotangents[0].astype(jnp.float32)  # the cross-entropies are for metrics only
    return (
        (hidden_gradient * scale).astype(hidden_gradient.dtype),
        (embedding_gradient * scale).astype(embedding_gradient.dtype),
        None,
        cross_entropy * scale,
    )


_vocab_cross_entropy.defvjp(_forward, _backward)
