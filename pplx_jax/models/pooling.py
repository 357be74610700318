"""Mean pooling over packed rows: one vector a text, or a chunk (late chunking)."""

import jax
import jax.numpy as jnp


def mean_pool(hidden: jax.Array, chunk_ids: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Mean of the hidden states of each slot's own tokens (arXiv 2602.11151, sections 2.2 and 2.4).

    Args:
      hidden: [B, L, D].
      chunk_ids: [B, L]; a token of slot s carries s + 1, padding and separators carry 0.
      slots: S; ids above it would be dropped, so the packer holds rows to it.

    Returns:
      pooled [B, S, D] float32, zero for an empty slot; counts [B, S] float32, the tokens of each slot.
    """
    member = chunk_ids[:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
    counts = jnp.sum(member, axis=-1, dtype=jnp.float32)
    # A token outside every slot enters the product as 0 * h, which is not 0 where h is not finite.
    inside = jnp.where(chunk_ids[..., None] > 0, hidden, 0)
    totals = jnp.einsum("bsl,bld->bsd", member.astype(hidden.dtype), inside, preferred_element_type=jnp.float32)
    return totals / jnp.maximum(counts, 1.0)[..., None], counts
