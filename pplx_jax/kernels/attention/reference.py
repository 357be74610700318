"""Attention over packed rows in plain XLA: the definition the other implementations are held against."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import precision


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, causal: bool = False
) -> jax.Array:
    """Softmax attention in which a token sees only the tokens of its own text.

    Args:
      query: [B, L, H, E].
      key: [B, L, K, E]; query head h reads key head h // (H / K).
      value: [B, L, K, E].
      segment_ids: [B, L]; 0 marks padding, which sees nothing and is seen by none.
      causal: whether a token is also kept from later tokens.

    Returns:
      [B, L, H, E] in the dtype of `query`, zero under padding; softmax in float32, scores scaled by 1 / sqrt(E).
    """
    return block_attention(query, key, value, segment_ids, segment_ids, first=0, causal=causal)


def block_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment_ids: jax.Array,
    segment_ids: jax.Array,
    *,
    first: jax.Array | int,
    causal: bool,
) -> jax.Array:
    """The part of `attention` that belongs to the queries [B, Q, H, E] at columns `first` to `first` + Q.

    Returns:
      [B, Q, H, E] in the dtype of `query`; zero where a query sees no key.
    """
    rows, queries, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(rows, queries, kv_heads, heads // kv_heads, head_dim)
    product = functools.partial(jnp.einsum, precision=precision(key.dtype), preferred_element_type=jnp.float32)
    scores = product("blkge,bmke->bkglm", grouped, key)
    visible = query_segment_ids[:, :, None] == segment_ids[:, None, :]
    if causal:
        visible &= (first + jnp.arange(queries))[:, None] >= jnp.arange(key.shape[1])
    scores = jnp.where(visible[:, None, None], scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = product("bkglm,bmke->blkge", weights, value)
    mixed = mixed.reshape(rows, queries, heads, head_dim).astype(query.dtype)
    return jnp.where((query_segment_ids > 0)[:, :, None, None], mixed, 0)
