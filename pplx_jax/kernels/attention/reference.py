"""Attention over packed sequences in plain XLA: the definition that the other implementations are compared with."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import precision


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, causal: bool = False
) -> jax.Array:
    """Softmax attention in which a token attends to the tokens of its own segment only.

    Args:
      query: [B, L, H, E].
      key: [B, L, K, E]; query head h reads key head h // (H / K).
      value: [B, L, K, E].
      segment_ids: [B, L]; 0 marks padding, which attends to nothing and which nothing attends to.
      causal: whether later tokens are masked too.

    Returns:
      [B, L, H, E] in the dtype of `query`, zero for padding; softmax in float32, scores scaled by 1 / sqrt(E).
    """
    return block_attention(query, key, value, segment_ids, segment_ids, query_offset=0, causal=causal)


def block_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment_ids: jax.Array,
    key_segment_ids: jax.Array,
    *,
    query_offset: jax.Array | int,
    causal: bool,
) -> jax.Array:
    """The part of `attention` for a block of queries [B, Q, H, E] at positions `query_offset` to `query_offset` + Q.

    Returns:
      [B, Q, H, E] in the dtype of `query`; zero for padding.
    """
    batch, queries, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    einsum = functools.partial(jnp.einsum, precision=precision(key.dtype), preferred_element_type=jnp.float32)
    # g counts the query heads of a key head, m the keys.
    scores = einsum("blkge,bmke->bkglm", grouped, key)
    visible = query_segment_ids[:, :, None] == key_segment_ids[:, None, :]
    if causal:
        visible &= (query_offset + jnp.arange(queries))[:, None] >= jnp.arange(key.shape[1])
    scores = jnp.where(visible[:, None, None], scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = einsum("bkglm,bmke->blkge", weights, value)
    out = out.reshape(batch, queries, heads, head_dim).astype(query.dtype)
    return jnp.where((query_segment_ids > 0)[:, :, None, None], out, 0)
