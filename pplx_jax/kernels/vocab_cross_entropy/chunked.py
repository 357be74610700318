"""A block of positions at a time in plain XLA: memory holds one [block, V] array, on any device."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import dot_general
from pplx_jax.kernels.vocab_cross_entropy.live_blocks import Block, Loss, over_live_blocks

BLOCK = 1024


def _dot(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    return dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())))


def losses(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    with_gradient: bool,
    block: int = BLOCK,
) -> Loss:
    """Loss and gradients.

    Args:
      hidden: [T, D].
      table: [V, D] in the dtype of `hidden`.
      targets: [T] int32.
      weights: [T] float32.
      with_gradient: whether the gradients are wanted.
      block: positions that have their scores in memory at a time.
    """

    def one_block(part: Block, of_table):
        logits = _dot(part.hidden, table, 1, 1)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        cross_entropy = log_normalizer - jnp.take_along_axis(logits, part.targets[:, None], axis=1)[:, 0]
        if of_table is None:
            return cross_entropy, None, None
        chosen = part.targets[:, None] == jnp.arange(table.shape[0])
        of_logits = (jnp.exp(logits - log_normalizer[:, None]) - chosen) * part.weights[:, None]
        of_logits = of_logits.astype(hidden.dtype)
        return cross_entropy, _dot(of_logits, table, 1, 0), of_table + _dot(of_logits, part.hidden, 0, 0)

    block = max(1, min(block, targets.shape[0]))
    shape = table.shape if with_gradient else None
    return over_live_blocks(one_block, hidden, targets, weights, block=block, table_shape=shape)
