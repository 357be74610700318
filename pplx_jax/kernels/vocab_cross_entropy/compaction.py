"""What the implementations share: positions with a weight are compacted and computed one chunk at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Chunk(NamedTuple):
    """Positions that are computed at once. The last chunk is filled up with zeros.

    Attributes:
      hidden: [chunk, D].
      targets: [chunk] int32.
      weights: [chunk] float32.
      live: int32 scalar, the number of positions that are not padding.
    """

    hidden: jax.Array
    targets: jax.Array
    weights: jax.Array
    live: jax.Array


class Loss(NamedTuple):
    """Result for all positions: arrays, or their partition specs.

    Attributes:
      loss: float32 scalar, the sum of weights * cross-entropy.
      cross_entropy: [T] float32, 0 where the weight is 0.
      hidden_gradient: [T, D] in the dtype of the hidden states; None without gradients.
      table_gradient: [V, D] float32; None without gradients.
    """

    loss: Any
    cross_entropy: Any
    hidden_gradient: Any
    table_gradient: Any


# (chunk, the table's gradient so far, or None without gradients) -> cross-entropy [chunk], gradient of the chunk's
# hidden states, the table's gradient with this chunk's added.
ChunkLoss = Callable[[Chunk, jax.Array | None], tuple[jax.Array, jax.Array | None, jax.Array | None]]


def loss_over_chunks(
    chunk_loss: ChunkLoss,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    table_shape: tuple[int, ...] | None,
) -> Loss:
    """Compacts the positions with a weight and calls `chunk_loss` for each chunk of them: cost follows their number.

    Gradients are made in the forward pass, where the scores are, so that nothing is recomputed.

    Args:
      chunk_loss: of an implementation.
      hidden: [T, D].
      targets: [T] int32.
      weights: [T] float32.
      chunk: positions per chunk.
      table_shape: shape of the table's gradient; None without gradients.
    """
    hidden, targets, weights = (jnp.asarray(array) for array in (hidden, targets, weights))
    count = targets.shape[0]
    if not count:
        table_gradient = None if table_shape is None else jnp.zeros(table_shape, jnp.float32)
        return Loss(jnp.float32(0.0), weights, None if table_gradient is None else hidden, table_gradient)
    padded = -(-count // chunk) * chunk
    is_live = weights != 0
    live = jnp.sum(is_live, dtype=jnp.int32)
    order = jnp.argsort(~is_live, stable=True)
    order = jnp.pad(jnp.where(jnp.arange(count) < live, order, count), (0, padded - count), constant_values=count)

    def step(state):
        first, cross_entropy, hidden_gradient, table_gradient = state
        places = jax.lax.dynamic_slice_in_dim(order, first, chunk)
        arrays = (x.at[places].get(mode="fill", fill_value=0) for x in (hidden, targets, weights))
        part = Chunk(*arrays, live=jnp.minimum(live - first, chunk))
        found, gradient, table_gradient = chunk_loss(part, table_gradient)
        cross_entropy = jax.lax.dynamic_update_slice_in_dim(cross_entropy, found, first, axis=0)
        if gradient is not None:
            gradient = gradient.astype(hidden.dtype)
            hidden_gradient = jax.lax.dynamic_update_slice_in_dim(hidden_gradient, gradient, first, axis=0)
        return first + chunk, cross_entropy, hidden_gradient, table_gradient

    state = (jnp.int32(0), jnp.zeros((padded,), jnp.float32), None, None)
    if table_shape is not None:
        state = (*state[:2], jnp.zeros((padded, hidden.shape[1]), hidden.dtype), jnp.zeros(table_shape, jnp.float32))
    _, cross_entropy, hidden_gradient, table_gradient = jax.lax.while_loop(lambda state: state[0] < live, step, state)

    place = jnp.cumsum(is_live) - 1  # of a live position among the live ones
    cross_entropy = jnp.where(is_live, cross_entropy[place], 0.0)
    if hidden_gradient is not None:
        hidden_gradient = jnp.where(is_live[:, None], hidden_gradient[place], 0)
    return Loss(jnp.sum(cross_entropy * weights), cross_entropy, hidden_gradient, table_gradient)
