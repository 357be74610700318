"""Attention over packed rows as Pallas kernels for TPUs, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp

from pplx_jax.kernels.attention.backward_kernel import backward
from pplx_jax.kernels.attention.forward_kernel import forward
from pplx_jax.kernels.attention.tiles import Tiles
from pplx_jax.kernels.attention.visits import table

# The backward pass keeps this many bytes of the queries' gradient in fast memory (twice, as all that is written back).
QUERY_GRADIENT_BYTES = 16 * 2**20


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool = False,
    tiles: tuple[Tiles, Tiles],
    interpret: bool = False,
) -> jax.Array:
    """What `reference.attention` returns, in memory linear in L; tiles whose texts do not meet cost nothing.

    Args:
      query, key, value, segment_ids, causal: as of `reference.attention`; any length, any head_dim.
      tiles: of the forward and of the backward pass.
      interpret: run without a TPU, slowly.

    Returns:
      [B, L, H, E] in the dtype of `query`.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    multiple = math.lcm(*(size for tile in tiles for size in (tile.query, tile.key)))
    padded_length = -(-length // multiple) * multiple
    padded_head = 64 if head_dim <= 64 else -(-head_dim // 128) * 128

    def padded(x: jax.Array) -> jax.Array:
        """[B, L, heads, E] as [B, heads, L, E]."""
        x = jnp.pad(x, ((0, 0), (0, padded_length - length), (0, 0), (0, padded_head - head_dim)))
        return x.transpose(0, 2, 1, 3)

    scale = head_dim**-0.5 * math.log2(math.e)
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    grouped = padded(scaled).reshape(batch, kv_heads, heads // kv_heads, padded_length, padded_head)
    ids = jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, padded_length - length)))
    mixed = _attention(grouped, padded(key), padded(value), ids, causal, tiles, interpret)
    mixed = mixed.reshape(batch, heads, padded_length, padded_head).transpose(0, 2, 1, 3)
    return mixed[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(query, key, value, ids, causal, tiles, interpret):
    return _forward(query, key, value, ids, causal, tiles, interpret)[0]


def _of_queries(ids: jax.Array) -> jax.Array:
    """[B, 1, L]: padding sees no key, padding or not."""
    return jnp.where(ids == 0, -1, ids)[:, None]


def _forward(query, key, value, ids, causal, tiles, interpret):
    visits = table(ids, ids, tiles[0], causal=causal)
    mixed, lse = forward(
        query,
        key,
        value,
        _of_queries(ids),
        ids[:, None],
        visits,
        causal=causal,
        tiles=tiles[0],
        interpret=interpret,
    )
    return mixed, (query, key, value, ids, mixed, lse)


def _backward(causal, tiles, interpret, saved, gradient):
    query, key, value, ids, mixed, lse = saved
    tile = tiles[1]
    _, _, group, length, head_dim = query.shape
    delta = jnp.sum(mixed.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    most = QUERY_GRADIENT_BYTES // (4 * group * head_dim)
    size = max(tile.query, most // tile.query * tile.query)
    query_gradients, sums = [], None
    for first in range(0, length, size):
        part = slice(first, min(first + size, length))
        of_query, of_key, of_value = backward(
            query[:, :, :, part],
            key,
            value,
            _of_queries(ids)[..., part],
            ids[:, None],
            table(ids[:, part], ids, tile, causal=causal, by_key=True, offset=first),
            gradient[:, :, :, part],
            lse[..., part],
            delta[..., part],
            causal=causal,
            offset=first,
            tiles=tile,
            interpret=interpret,
        )
        query_gradients.append(of_query.swapaxes(-1, -2))
        sums = (of_key, of_value) if sums is None else (sums[0] + of_key, sums[1] + of_value)
    query_gradient = jnp.concatenate(query_gradients, axis=3) * math.log(2.0)  # scores are to base 2
    return query_gradient.astype(query.dtype), sums[0].astype(key.dtype), sums[1].astype(value.dtype), None


_attention.defvjp(_forward, _backward)
