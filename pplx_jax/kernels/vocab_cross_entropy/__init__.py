"""Cross-entropy of a tied head over a large vocabulary, without [T, V] logits in memory: the public face."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from pplx_jax.errors import BadInput
from pplx_jax.kernels.vocab_cross_entropy import chunked, pallas
from pplx_jax.kernels.vocab_cross_entropy.live_blocks import Loss

Implementation = Literal["chunked", "pallas"]
# Mesh axes that positions are shared over, and the one that the width of the table may lie on.
ROW_AXES, WIDTH_AXIS = ("slice", "data", "fsdp", "tensor"), "fsdp"


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
    a time, by Pallas kernels on a TPU and by XLA elsewhere. Within `jax.set_mesh` each device works its own positions
    against the whole table: what travels is the table and its gradient, never logits.

    Args:
      hidden: [T, D].
      embedding: [V, D]; products are of the dtype of `hidden`.
      targets: [T] integers below V.
      weights: [T]; differentiable.
      implementation: forced, where given.

    Returns:
      The sum, a float32 scalar, differentiable in `hidden`, `embedding` and `weights`; and the cross-entropy [T] of
      each position in nats (0 where its weight is 0), float32, for metrics and without a gradient.

    Raises:
      BadInput: the forced implementation is unknown or cannot run here.
    """
    if implementation not in (None, *get_args(Implementation)):
        raise BadInput(
            f"vocab_cross_entropy: implementation {implementation!r} is not one of "
            f"{', '.join(get_args(Implementation))}"
        )
    if implementation == "pallas" and jax.default_backend() != "tpu":
        raise BadInput(
            f"vocab_cross_entropy: implementation 'pallas' wants a TPU, this is {jax.default_backend()}; leave it out, "
            "or call pallas.losses(interpret=True) to try it"
        )
    hidden, embedding, targets, weights = (jnp.asarray(array) for array in (hidden, embedding, targets, weights))
    return _vocab_cross_entropy(hidden, embedding, targets.astype(jnp.int32), weights, implementation)


def _device_kind() -> str:
    """Of the devices that this will run on, where it is known: those of the mesh, or the default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""


def _on_mesh(
    hidden, embedding, targets, weights, *, with_gradient: bool, implementation: Implementation | None
) -> Loss:
    """Each device's positions, summed over the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROW_AXES if mesh.shape.get(axis, 1) > 1)
    spread = WIDTH_AXIS in axes and embedding.shape[1] % mesh.shape[WIDTH_AXIS] == 0

    def each(hidden, embedding, targets, weights, *, module, **more) -> Loss:
        table = embedding.astype(hidden.dtype)
        if spread:
            table = jax.lax.all_gather(table, WIDTH_AXIS, axis=1, tiled=True)
        found = module.losses(hidden, table, targets, weights, with_gradient=with_gradient, **more)
        of_table = found.of_table
        if with_gradient and spread:
            of_table = jax.lax.psum_scatter(of_table, WIDTH_AXIS, scatter_dimension=1, tiled=True)
        if others := tuple(axis for axis in axes if not (spread and axis == WIDTH_AXIS)):
            of_table = jax.lax.psum(of_table, others)
        return found._replace(loss=jax.lax.psum(found.loss, axes) if axes else found.loss, of_table=of_table)

    kernel = functools.partial(each, module=pallas, device_kind=_device_kind())
    xla = functools.partial(each, module=chunked)

    def chosen(*arguments) -> Loss:
        if implementation is None:
            return jax.lax.platform_dependent(*arguments, tpu=kernel, default=xla)
        return {"pallas": kernel, "chunked": xla}[implementation](*arguments)

    if not axes:
        return chosen(hidden, embedding, targets, weights)
    rows, table = PartitionSpec(axes), PartitionSpec(None, WIDTH_AXIS if spread else None)
    out = Loss(PartitionSpec(), rows, rows if with_gradient else None, table if with_gradient else None)
    run = jax.shard_map(chosen, in_specs=(rows, table, rows, rows), out_specs=out, check_vma=False)
    count, devices = targets.shape[0], math.prod(mesh.shape[axis] for axis in axes)

    def filled(x):
        return jnp.pad(x, ((0, -count % devices), *((0, 0),) * (x.ndim - 1)))

    found = run(filled(hidden), embedding, filled(targets), filled(weights))
    of_hidden = found.of_hidden[:count] if with_gradient else None
    return found._replace(cross_entropy=found.cross_entropy[:count], of_hidden=of_hidden)


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
