"""Cross-entropy over a vocabulary, a block of positions at a time, gradients made in the forward pass.

Positions with a weight are sorted to the front and blocks without any are skipped, so the cost follows the number
of masked positions while shapes stay static. A block's logits give both its loss and its gradients, and are then
dropped: nothing is recomputed, and memory holds one [block, V] array.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.parallel.collectives import gather, scatter_sum


def _dot(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


def _blocks(hidden, embedding, targets, weights, block: int, partition: PartitionSpec, with_gradient: bool):
    """Loss, per-position cross-entropy and, if asked, the gradients of the loss to hidden and embedding."""
    count = targets.shape[0]
    padded = -(-count // block) * block
    order = jnp.argsort(weights == 0, stable=True)
    order = jnp.concatenate([order, jnp.full((padded - count,), count, order.dtype)])
    order = order.reshape(-1, block)
    table = gather(embedding.astype(hidden.dtype), partition)

    def live(state, positions, block_weights):
        loss, embedding_gradient = state
        block_hidden = hidden.at[positions].get(mode="fill", fill_value=0)
        block_targets = targets.at[positions].get(mode="fill", fill_value=0)
        logits = _dot(block_hidden, table, 1, 1)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        cross_entropy = log_normalizer - jnp.take_along_axis(logits, block_targets[:, None], axis=1)[:, 0]
        loss += jnp.sum(cross_entropy * block_weights)
        if not with_gradient:
            return (loss, embedding_gradient), (cross_entropy, jnp.zeros((block, 0), hidden.dtype))
        chosen = block_targets[:, None] == jnp.arange(table.shape[0])
        logit_gradient = (jnp.exp(logits - log_normalizer[:, None]) - chosen) * block_weights[:, None]
        logit_gradient = logit_gradient.astype(hidden.dtype)
        embedding_gradient += _dot(logit_gradient, block_hidden, 0, 0)
        return (loss, embedding_gradient), (
            cross_entropy,
            _dot(logit_gradient, table, 1, 0).astype(hidden.dtype),
        )

    def skip(state, positions, block_weights):
        del positions, block_weights
        width = hidden.shape[1] if with_gradient else 0
        return state, (jnp.zeros((block,), jnp.float32), jnp.zeros((block, width), hidden.dtype))

    def step(state, positions):
        block_weights = weights.at[positions].get(mode="fill", fill_value=0)
        return jax.lax.cond(jnp.any(block_weights != 0), live, skip, state, positions, block_weights)

    gradient_shape = table.shape if with_gradient else (0,)
    state = (jnp.float32(0), jnp.zeros(gradient_shape, jnp.float32))
    (loss, embedding_gradient), (cross_entropy, hidden_gradient) = jax.lax.scan(step, state, order)

    flat = order.reshape(-1)
    cross_entropy = jnp.zeros((count,), jnp.float32).at[flat].set(cross_entropy.reshape(-1), mode="drop")
    cross_entropy = jnp.where(weights != 0, cross_entropy, 0.0)
    if not with_gradient:
        return loss, cross_entropy, None, None
    hidden_gradient = jnp.zeros_like(hidden).at[flat].set(hidden_gradient.reshape(padded, -1), mode="drop")
    return loss, cross_entropy, hidden_gradient, scatter_sum(embedding_gradient, partition).astype(embedding.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def vocab_cross_entropy(hidden, embedding, targets, weights, block, partition):
    """As of the face, positions in one axis.

    Args:
      hidden: [T, D].
      embedding: [V, D], or a device's part of it.
      targets: [T].
      weights: [T].
      block: positions at a time.
      partition: how the embedding lies on the mesh, where this runs within a `shard_map`.
    """
    loss, cross_entropy, _, _ = _blocks(hidden, embedding, targets, weights, block, partition, with_gradient=False)
    return loss, cross_entropy


def _forward(hidden, embedding, targets, weights, block, partition):
    loss, cross_entropy, hidden_gradient, embedding_gradient = _blocks(
        hidden, embedding, targets, weights, block, partition, with_gradient=True
    )
    return (loss, cross_entropy), (hidden_gradient, embedding_gradient, cross_entropy)


def _backward(block, partition, residual, cotangents):
    del block, partition
    hidden_gradient, embedding_gradient, cross_entropy = residual
    loss_cotangent, _ = cotangents  # the per-position values are for metrics only
    scale = loss_cotangent.astype(jnp.float32)
    return (
        (hidden_gradient * scale).astype(hidden_gradient.dtype),
        (embedding_gradient * scale).astype(embedding_gradient.dtype),
        None,
        cross_entropy * scale,
    )


vocab_cross_entropy.defvjp(_forward, _backward)
