"""Attention over packed sequences in plain XLA: the definition that the other implementations are compared with."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.products import precision


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    query_offset: jax.Array | int = 0,
    causal: bool = False,
) -> jax.Array:
    """Returns softmax attention in which a token attends to the tokens of its own segment only.

    Args:
      query: [B, Q, H, E]; all tokens of a sequence, or a part of them.
      key: [B, L, K, E]; query head h reads key head h // (H / K).
      value: [B, L, K, E].
      segment_ids: [B, Q] of the queries; 0 marks padding, which attends to nothing and which nothing attends to.
      key_segment_ids: [B, L] if the queries are a part of the sequence; `segment_ids` if None.
      query_offset: position of the first query among the keys.
      causal: whether later tokens are masked too.

    Returns:
      [B, Q, H, E] in the dtype of `query`, zero for padding; softmax in float32, scores scaled by 1 / sqrt(E).
    """
    key_ids = segment_ids if key_segment_ids is None else key_segment_ids
    batch, queries, heads, head_dim = query.shape
    kv_heads, keys = key.shape[2:0:-1]
    # Heads come first, so that each product is over a batch of matrices. XLA on CPU takes half again as long otherwise.
    grouped = query.transpose(0, 2, 1, 3).reshape(batch * kv_heads, -1, head_dim)
    key, value = (x.transpose(0, 2, 1, 3).reshape(batch * kv_heads, keys, head_dim) for x in (key, value))
    product = functools.partial(jax.lax.dot_general, precision=precision(key.dtype), preferred_element_type=jnp.float32)
    scores = product(grouped, key, (((2,), (2,)), ((0,), (0,))))
    visible = segment_ids[:, :, None] == key_ids[:, None, :]
    if causal:
        visible &= (query_offset + jnp.arange(queries))[:, None] >= jnp.arange(keys)
    scores = scores.reshape(batch, heads, queries, keys) * head_dim**-0.5
    scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = product(weights.reshape(batch * kv_heads, -1, keys), value, (((2,), (1,)), ((0,), (0,))))
    out = out.reshape(batch, heads, queries, head_dim).transpose(0, 2, 1, 3).astype(query.dtype)
    return jnp.where((segment_ids > 0)[:, :, None, None], out, 0)
