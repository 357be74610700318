"""Attention over packed rows as Pallas kernels for TPUs, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.attention.backward_kernel import backward
from pplx_jax.kernels.attention.forward_kernel import forward
from pplx_jax.kernels.attention.tiles import Tiles, best
from pplx_jax.kernels.attention.visits import table


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    causal: bool = False,
    tiles: tuple[Tiles, Tiles] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `reference.attention` returns, in memory linear in L; tiles whose texts do not meet cost nothing.

    Args:
      query: [B, Q, H, E]; any length, any head_dim.
      key: [B, L, K, E].
      value: [B, L, K, E].
      segment_ids: [B, Q].
      key_segment_ids: [B, L], where the queries are a part of the row (context parallelism); else those of the queries.
      causal: as of `reference.attention`.
      tiles: of the forward and of the backward pass; the best known where None.
      interpret: run without a TPU, slowly.

    Returns:
      [B, Q, H, E] in the dtype of `query`.

    Raises:
      BadInput: the tiles do not fit the core's memory; a causal mask of queries that are a part of the row, of which no
        place is known.
    """
    if causal and key_segment_ids is not None:
        raise BadInput("attention: TPU kernels have no causal mask over queries that are a part of the row; give all")
    length, heads, head_dim = query.shape[1:]
    kv_heads = key.shape[2]
    padded_head = 64 if head_dim <= 64 else -(-head_dim // 128) * 128
    tiles = tiles or best(length, heads // kv_heads, padded_head, query.dtype.itemsize)
    ids = segment_ids.astype(jnp.int32)
    key_ids = ids if key_segment_ids is None else key_segment_ids.astype(jnp.int32)
    query_multiple = math.lcm(*(tile.query for tile in tiles))
    key_multiple = math.lcm(*(tile.key for tile in tiles))
    if key_segment_ids is None:
        query_multiple = key_multiple = math.lcm(query_multiple, key_multiple)

    def padded(x: jax.Array, multiple: int) -> jax.Array:
        """[B, L, heads, E] as [B, heads, L, E]."""
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, padded_head - head_dim)))
        return x.transpose(0, 2, 1, 3)

    def padded_ids(ids: jax.Array, multiple: int) -> jax.Array:
        return jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % multiple)))

    # XLA fuses this with what made the query, and rounds once.
    scaled = query.astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
    grouped = padded(scaled.astype(query.dtype), query_multiple)
    grouped = grouped.reshape(grouped.shape[0], kv_heads, heads // kv_heads, *grouped.shape[2:])
    mixed = _attention(
        grouped,
        padded(key, key_multiple),
        padded(value, key_multiple),
        padded_ids(ids, query_multiple),
        padded_ids(key_ids, key_multiple),
        causal,
        tiles,
        interpret,
    )
    mixed = mixed.reshape(mixed.shape[0], heads, *mixed.shape[3:]).transpose(0, 2, 1, 3)
    return mixed[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(query, key, value, ids, key_ids, causal, tiles, interpret):
    return _forward(query, key, value, ids, key_ids, causal, tiles, interpret)[0]


def _of_queries(ids: jax.Array) -> jax.Array:
    """[B, 1, Q]: padding sees no key, padding or not."""
    return jnp.where(ids == 0, -1, ids)[:, None]


def _forward(query, key, value, ids, key_ids, causal, tiles, interpret):
    tile = tiles[0]
    tile.require(tile.forward_bytes(query.shape[2], query.shape[4], query.dtype.itemsize))
    visits = table(ids, key_ids, tile, causal=causal)
    mixed, lse = forward(
        query,
        key,
        value,
        _of_queries(ids),
        key_ids[:, None],
        visits,
        causal=causal,
        tiles=tile,
        interpret=interpret,
    )
    mixed, lse = checkpoint_name(mixed, "attention"), checkpoint_name(lse, "attention")
    return mixed, (query, key, value, ids, key_ids, mixed, lse)


def _backward(causal, tiles, interpret, saved, gradient):
    query, key, value, ids, key_ids, mixed, lse = saved
    tile = tiles[1]
    _, _, group, length, head_dim = query.shape
    # A row too long for its queries' gradient to stay in fast memory goes in stretches.
    size = tile.most_queries(group, head_dim, query.dtype.itemsize, length)
    needed = tile.backward_bytes(group, head_dim, query.dtype.itemsize, size, in_stretches=size < length)
    tile.require(needed)
    sums = jnp.stack([lse, jnp.sum(mixed.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)], axis=2)
    query_gradients: list[jax.Array] = []
    of_key = of_value = key  # of the stretches so far
    for first in range(0, length, size):
        part = slice(first, min(first + size, length))
        of_query, of_key, of_value = backward(
            query[:, :, :, part],
            key,
            value,
            _of_queries(ids)[..., part],
            key_ids[:, None],
            table(ids[:, part], key_ids, tile, causal=causal, by_key=True, offset=first),
            gradient[:, :, :, part],
            sums[..., part],
            (of_key, of_value) if first else None,
            causal=causal,
            offset=first,
            tiles=tile,
            interpret=interpret,
        )
        of_query = of_query.swapaxes(-1, -2) * math.log(2.0)  # scores are to base 2
        query_gradients.append(of_query.astype(query.dtype))
    of_key *= math.log(2.0)
    return jnp.concatenate(query_gradients, axis=3), of_key.astype(key.dtype), of_value.astype(value.dtype), None, None


_attention.defvjp(_forward, _backward)
