"""What every implementation shares: positions that have a weight are brought together and taken a block at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Block(NamedTuple):
    """One block of positions; those from `live` on are only there to fill it, with zeros.

    Attributes:
      hidden: [block, D].
      targets: [block] int32.
      weights: [block] float32.
      live: int32 scalar.
    """

    hidden: jax.Array
    targets: jax.Array
    weights: jax.Array
    live: jax.Array


class Loss(NamedTuple):
    """Of all positions: arrays, or how each is laid out.

    Attributes:
      loss: float32 scalar, the sum of weights * cross-entropy.
      cross_entropy: [T] float32, 0 where the weight is.
      of_hidden: [T, D] in the dtype of the hidden states, or None where no gradient is wanted.
      of_table: [V, D] float32, or None.
    """

    loss: Any
    cross_entropy: Any
    of_hidden: Any
    of_table: Any


# A block and the gradient of the table so far (None: none is wanted) -> cross-entropies [block], the gradient of the
# block's hidden states, the gradient of the table with this block's added.
OneBlock = Callable[[Block, jax.Array | None], tuple[jax.Array, jax.Array | None, jax.Array | None]]


def over_live_blocks(
    one_block: OneBlock,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    block: int,
    table_shape: tuple[int, ...] | None,
) -> Loss:
    """Runs `one_block` as often as the positions with a weight fill blocks: cost follows their number, none is lost.

    Gradients are made in the forward pass, where the scores are: nothing is recomputed.

    Args:
      one_block: an implementation.
      hidden: [T, D].
      targets: [T] int32.
      weights: [T] float32.
      block: positions of a block.
      table_shape: of the table's gradient; None where no gradients are wanted.
    """
    hidden, targets, weights = (jnp.asarray(array) for array in (hidden, targets, weights))
    count = targets.shape[0]
    if not count:
        of_table = None if table_shape is None else jnp.zeros(table_shape, jnp.float32)
        return Loss(jnp.float32(0.0), weights, None if of_table is None else hidden, of_table)
    padded = -(-count // block) * block
    is_live = weights != 0
    live = jnp.sum(is_live, dtype=jnp.int32)
    order = jnp.argsort(~is_live, stable=True)
    order = jnp.pad(jnp.where(jnp.arange(count) < live, order, count), (0, padded - count), constant_values=count)

    def step(state):
        first, cross_entropy, of_hidden, of_table = state
        places = jax.lax.dynamic_slice_in_dim(order, first, block)
        part = (x.at[places].get(mode="fill", fill_value=0) for x in (hidden, targets, weights))
        part = Block(*part, live=jnp.minimum(live - first, block))
        found, of_part, of_table = one_block(part, of_table)
        cross_entropy = jax.lax.dynamic_update_slice_in_dim(cross_entropy, found, first, axis=0)
        if of_part is not None:
            of_hidden = jax.lax.dynamic_update_slice_in_dim(of_hidden, of_part.astype(hidden.dtype), first, axis=0)
        return first + block, cross_entropy, of_hidden, of_table

    state = (jnp.int32(0), jnp.zeros((padded,), jnp.float32), None, None)
    if table_shape is not None:
        state = (*state[:2], jnp.zeros((padded, hidden.shape[1]), hidden.dtype), jnp.zeros(table_shape, jnp.float32))
    _, cross_entropy, of_hidden, of_table = jax.lax.while_loop(lambda state: state[0] < live, step, state)

    place = jnp.cumsum(is_live) - 1  # of a live position among the live ones
    cross_entropy = jnp.where(is_live, cross_entropy[place], 0.0)
    if of_hidden is not None:
        of_hidden = jnp.where(is_live[:, None], of_hidden[place], 0)
    return Loss(jnp.sum(cross_entropy * weights), cross_entropy, of_hidden, of_table)
