"""Layout helpers of the TPU kernels, and masks that a matrix product applies."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.attention.tiles import LANES

# Score of a masked pair. Differences of two such scores stay finite in float32.
MASK_VALUE = -1e30
_SUBLANES = 8
_DIGIT_BITS, _BASE = 4, 16


def broadcast_lanes(x: jax.Array, width: int) -> jax.Array:
    """Widens or cuts x [R, 128], all lanes of a row equal, to [R, width]."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, width // LANES))


def lanes_to_row(x: jax.Array) -> jax.Array:
    """Turns x [R, 128], all lanes of a row equal, into [1, R]: it sums the diagonal of each 128 x 128 block."""
    rows = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, LANES), 0)
    lanes = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, LANES), 1)
    parts = []
    for first in range(0, x.shape[0], LANES):
        diagonal = jnp.zeros((_SUBLANES, LANES), x.dtype)
        for row in range(0, LANES, _SUBLANES):
            diagonal = jnp.where(lanes - rows == row, x[first + row : first + row + _SUBLANES], diagonal)
        parts.append(diagonal.sum(axis=0, keepdims=True))
    return jnp.concatenate(parts, axis=1)


def segment_codes(query_ids: jax.Array, key_ids: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns columns that mask scores when they are appended to the queries and the keys of a product.

    An id of 32 bits is eight digits with sixteen values each, and each value of each digit has a column.

    Args:
      query_ids: [1, Q] int32.
      key_ids: [1, L] int32.
      dtype: of the result.

    Returns:
      [Q, 128] and [L, 128]. The product of two rows is 0 for equal ids and at most `MASK_VALUE` for different ids.
    """

    def has(ids):
        columns = jax.lax.broadcasted_iota(jnp.int32, (ids.shape[1], LANES), 1)
        shift, digit = columns // _BASE * _DIGIT_BITS, columns % _BASE
        ids = jnp.broadcast_to(ids, (LANES, ids.shape[1])).T
        return (ids ^ (digit << shift)) & ((_BASE - 1) << shift) == 0

    return jnp.where(has(query_ids), 1.0, 0.0).astype(dtype), jnp.where(has(key_ids), 0.0, MASK_VALUE).astype(dtype)
