"""One chunk of positions at a time in plain XLA: memory holds one [chunk, V] array, on any device."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import product, product_over_rows
from pplx_jax.kernels.vocab_cross_entropy.compaction import Chunk, Loss, loss_over_chunks

CHUNK = 1024


def losses(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    with_gradient: bool,
    chunk: int = CHUNK,
) -> Loss:
    """Returns the loss, and its gradients if requested.

    Args:
      hidden: [T, D].
      table: [V, D] in the dtype of `hidden`.
      targets: [T] int32.
      weights: [T] float32.
      with_gradient: whether to return gradients.
      chunk: positions whose logits are in memory at a time.
    """

    def chunk_loss(part: Chunk, table_gradient):
        logits = product(part.hidden, table, transposed=True)
        logsumexp = jax.nn.logsumexp(logits, axis=-1)
        cross_entropy = logsumexp - jnp.take_along_axis(logits, part.targets[:, None], axis=1)[:, 0]
        if table_gradient is None:
            return cross_entropy, None, None
        is_target = part.targets[:, None] == jnp.arange(table.shape[0])
        gradient = (jnp.exp(logits - logsumexp[:, None]) - is_target) * part.weights[:, None]
        gradient = gradient.astype(hidden.dtype)
        return cross_entropy, product(gradient, table), table_gradient + product_over_rows(gradient, part.hidden)

    chunk = max(1, min(chunk, targets.shape[0]))
    shape = table.shape if with_gradient else None
    return loss_over_chunks(chunk_loss, hidden, targets, weights, chunk=chunk, table_shape=shape)
