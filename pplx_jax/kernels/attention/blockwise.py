"""Attention over packed sequences in plain XLA, one block of queries at a time: no L x L array, on any device."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.attention import reference

BLOCK_Q = 256


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    query_offset: jax.Array | int = 0,
    causal: bool = False,
    block_q: int = BLOCK_Q,
) -> jax.Array:
    """Returns what `reference.attention` returns, in memory linear in L.

    The scores of one block, [B, K, H / K, block_q, L], exist at a time; the backward pass computes them again.

    Args:
      query, key, value, segment_ids, key_segment_ids, query_offset, causal: as for `reference.attention`.
      block_q: queries per block; memory grows with it, time hardly depends on it.

    Returns:
      [B, L, H, E] in the dtype of `query`.
    """
    length = query.shape[1]
    key_ids = segment_ids if key_segment_ids is None else key_segment_ids
    blocks = -(-length // block_q)
    padding = blocks * block_q - length
    padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    padded_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))

    @jax.checkpoint
    def block(start: jax.Array) -> jax.Array:
        queries = jax.lax.dynamic_slice_in_dim(padded, start, block_q, axis=1)
        ids = jax.lax.dynamic_slice_in_dim(padded_ids, start, block_q, axis=1)
        return reference.attention(
            queries, key, value, ids, key_segment_ids=key_ids, query_offset=query_offset + start, causal=causal
        )

    out = jax.lax.map(block, jnp.arange(blocks) * block_q)  # [blocks, B, block_q, H, E]
    return jnp.moveaxis(out, 0, 1).reshape(padded.shape)[:, :length]
