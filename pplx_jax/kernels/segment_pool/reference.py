"""Mean pooling of packed sequences in plain XLA: the definition that the kernel is compared with."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import dot_general
from pplx_jax.kernels.quantization import Rounding, tanh_int8

# Above this the one-hot matrix [B, S, L] could become larger than the hidden states.
_MAX_ONE_HOT_SLOTS = 512
_BY_TOKEN = (((2,), (1,)), ((0,), (0,)))


def segment_pool(
    hidden: jax.Array, chunk_ids: jax.Array, slots: int, *, output: str = "mean", rounding: Rounding = "half_even"
) -> tuple[jax.Array, jax.Array]:
    """Returns what `segment_pool.segment_pool` returns, for the same arguments."""
    pooled, counts = mean_pool(hidden, chunk_ids, slots)
    if output == "mean":
        return pooled, counts
    quantized = tanh_int8(pooled, rounding)
    return quantized.astype(jnp.int8) if output == "int8" else quantized, counts


def mean_pool(hidden: jax.Array, chunk_ids: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of the hidden states of each slot's own tokens (arXiv 2602.11151, sections 2.2 and 2.4).

    Args:
      hidden: [B, L, D].
      chunk_ids: [B, L]; s + 1 for a token of slot s, 0 for padding and separators.
      slots: S. Larger ids would be dropped.

    Returns:
      Pooled vectors [B, S, D] float32, zero for an empty slot, and the number of tokens of each slot, [B, S] float32.
    """
    if slots > _MAX_ONE_HOT_SLOTS:
        return _scattered_mean(hidden, chunk_ids, slots)
    member = chunk_ids[:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
    counts = jnp.sum(member, axis=-1, dtype=jnp.float32)
    # A token outside every slot would enter the product as 0 * h, which is NaN if h is not finite.
    inside = jnp.where(chunk_ids[..., None] > 0, hidden, 0)
    totals = dot_general(member.astype(hidden.dtype), inside, _BY_TOKEN)
    return totals / jnp.maximum(counts, 1.0)[..., None], counts


def _scattered_mean(hidden: jax.Array, chunk_ids: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns `mean_pool` by adding each token to its slot; slot 0 of the sums takes the tokens outside every slot."""

    def total(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=slots + 1)[1:]

    totals = jax.vmap(total)(hidden.astype(jnp.float32), chunk_ids)
    counts = jax.vmap(total)(jnp.ones(chunk_ids.shape, jnp.float32), chunk_ids)
    return totals / jnp.maximum(counts, 1.0)[..., None], counts
