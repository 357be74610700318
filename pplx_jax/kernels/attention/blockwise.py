"""Attention over packed rows in plain XLA, a block of queries at a time: no array of L x L, on any device."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.attention import reference

QUERY_BLOCK = 256


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    first: jax.Array | int = 0,
    causal: bool = False,
    query_block: int = QUERY_BLOCK,
) -> jax.Array:
    """What `reference.attention` returns, in memory linear in L.

    One block's scores [B, K, H / K, query_block, L] exist at a time; the backward pass computes them again.

    Args:
      query, key, value, segment_ids, causal: as of `reference.attention`.
      key_segment_ids: [B, L], where the queries are a part of the row; else those of the queries.
      first: place of the first query among the keys.
      query_block: queries at a time; time does not depend on it much, memory does.

    Returns:
      [B, L, H, E] in the dtype of `query`.
    """
    length = query.shape[1]
    key_ids = segment_ids if key_segment_ids is None else key_segment_ids
    blocks = -(-length // query_block)
    padding = blocks * query_block - length
    padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    padded_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))

    @jax.checkpoint
    def block(start: jax.Array) -> jax.Array:
        queries = jax.lax.dynamic_slice_in_dim(padded, start, query_block, axis=1)
        ids = jax.lax.dynamic_slice_in_dim(padded_ids, start, query_block, axis=1)
        return reference.block_attention(queries, key, value, ids, key_ids, first=first + start, causal=causal)

    mixed = jax.lax.map(block, jnp.arange(blocks) * query_block)  # [blocks, B, query_block, H, E]
    return jnp.moveaxis(mixed, 0, 1).reshape(padded.shape)[:, :length]
