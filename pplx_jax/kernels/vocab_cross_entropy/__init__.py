"""Cross-entropy of a tied head over a large vocabulary, without [T, V] logits in memory: the public face."""

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
from pplx_jax.kernels.vocab_cross_entropy.live_blocks import Loss
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
    """Sum of weights * cross-entropy of `targets` under softmax(hidden @ embedding^T).

    Positions of weight 0 cost nothing but their place: those that have one are brought together and worked a block at
    a time, by Pallas kernels on a TPU and by XLA elsewhere. Within `jax.set_mesh` each device works a share of the
    positions against the whole table, which is gathered in the precision of `hidden`; so no axis of the mesh has to
    divide the vocabulary. What travels is the table and its gradient, added up in float32, never logits.

    Args:
      hidden: [..., D].
      embedding: [V, D]; products are of the dtype of `hidden`.
      targets: [...] integers from 0 below V; the loss of another is NaN.
      weights: [...]; differentiable where not 0: a position of weight 0 is not looked at, and has a gradient of 0.
      implementation: forced, where given.

    Returns:
      The sum, a float32 scalar, differentiable in `hidden`, `embedding` and `weights`; and the cross-entropy [...] of
      each position in nats (0 where its weight is 0), float32, for metrics and without a gradient.

    Raises:
      BadInput: the forced implementation is unknown or cannot run here.
    """
    if implementation not in (None, *get_args(Implementation)):
        raise BadInput(
            f"vocab_cross_entropy: implementation {implementation!r} is not one of "
            f"{', '.join(get_args(Implementation))}"
        )
    if implementation == "pallas" and platform() != "tpu":
        raise BadInput(
            f"vocab_cross_entropy: implementation 'pallas' wants a TPU, this is {jax.default_backend()}; leave it out, "
            "or call pallas.losses(interpret=True) to try it"
        )
    hidden, embedding, targets, weights = (jnp.asarray(array) for array in (hidden, embedding, targets, weights))
    shape = targets.shape if targets.ndim == 2 else (1, targets.size)
    hidden, weights = hidden.reshape(*shape, hidden.shape[-1]), weights.astype(jnp.float32)
    targets = jnp.where(targets < 0, embedding.shape[0], targets).astype(jnp.int32).reshape(shape)
    loss, each = _vocab_cross_entropy(hidden, embedding, targets, weights.reshape(shape), implementation)
    return loss, each.reshape(weights.shape)


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


def _on_mesh(
    hidden, embedding, targets, weights, *, with_gradient: bool, implementation: Implementation | None
) -> Loss:
    """Each device's positions [B, L], summed over the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    partition = PartitionSpec() if alone else spec(parameter_axes("embed.embedding", 2), embedding.shape, mesh)
    rows, tokens = ((), ()) if alone else _positions(targets.shape, mesh)
    sharing, spread = rows + tokens, jax.tree.leaves(tuple(partition))
    copies = math.prod(mesh.shape[axis] for axis in spread if axis not in sharing)  # that work the same positions
    others = tuple(axis for axis in sharing if axis not in spread)

    def each(hidden, embedding, targets, weights, *, module, **more) -> Loss:
        table = all_gather_parts(embedding.astype(hidden.dtype), partition)
        flat = (hidden.reshape(-1, hidden.shape[-1]), table, targets.reshape(-1), weights.reshape(-1))
        loss, cross_entropy, of_hidden, of_table = module.losses(*flat, with_gradient=with_gradient, **more)
        if with_gradient:
            of_hidden, of_table = of_hidden.reshape(hidden.shape), scatter_sum(of_table / copies, partition)
            of_table = jax.lax.psum(of_table, others) if others else of_table
        loss = jax.lax.psum(loss, sharing) if sharing else loss
        return Loss(loss, cross_entropy.reshape(targets.shape), of_hidden, of_table)

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
    of_embedding = found.of_table.astype(embedding.dtype)
    return (found.loss, found.cross_entropy), (found.of_hidden, of_embedding, found.cross_entropy)


def _backward(implementation, residual, cotangents):
    del implementation
    of_hidden, of_embedding, cross_entropy = residual
    scale = cotangents[0].astype(jnp.float32)  # the values of positions are for metrics only
    return (
        (of_hidden * scale).astype(of_hidden.dtype),
        (of_embedding * scale).astype(of_embedding.dtype),
        None,
        cross_entropy * scale,
    )


_vocab_cross_entropy.defvjp(_forward, _backward)
