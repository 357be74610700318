"""Attention over packed sequences as Pallas kernels for TPUs, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.attention.backward_kernel import backward
from pplx_jax.kernels.attention.forward_kernel import forward
from pplx_jax.kernels.attention.mask_info import make_mask_info
from pplx_jax.kernels.attention.tiles import Tiles, choose_tiles


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
    """Returns what `reference.attention` returns, in memory linear in L; blocks without a common segment are skipped.

    Args:
      query: [B, Q, H, E]; any length, any head_dim.
      key: [B, L, K, E].
      value: [B, L, K, E].
      segment_ids: [B, Q].
      key_segment_ids: [B, L] if the queries are a part of the sequence (context parallelism); `segment_ids` if None.
      causal: as for `reference.attention`.
      tiles: block sizes of the forward and of the backward pass; `choose_tiles` if None.
      interpret: run without a TPU, slowly.

    Returns:
      [B, Q, H, E] in the dtype of `query`.

    Raises:
      BadInput: the tiles do not fit in VMEM; a causal mask for queries that are a part of the sequence, whose position
        is unknown here.
    """
    if causal and key_segment_ids is not None:
        raise BadInput(
            "attention: the TPU kernels have no causal mask for queries that are a part of the sequence; give them all"
        )
    length, heads, head_dim = query.shape[1:]
    kv_heads = key.shape[2]
    padded_head_dim = 64 if head_dim <= 64 else -(-head_dim // 128) * 128
    tiles = tiles or choose_tiles(length, heads // kv_heads, padded_head_dim, query.dtype.itemsize)
    ids = segment_ids.astype(jnp.int32)
    key_ids = ids if key_segment_ids is None else key_segment_ids.astype(jnp.int32)
    query_multiple = math.lcm(*(each.block_q for each in tiles))
    key_multiple = math.lcm(*(each.block_kv for each in tiles))
    if key_segment_ids is None:
        query_multiple = key_multiple = math.lcm(query_multiple, key_multiple)

    def padded(x: jax.Array, multiple: int) -> jax.Array:
        """Returns x [B, L, heads, E], padded, as [B, heads, L, E]."""
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, padded_head_dim - head_dim)))
        return x.transpose(0, 2, 1, 3)

    def padded_ids(ids: jax.Array, multiple: int) -> jax.Array:
        return jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % multiple)))

    # XLA fuses the scale with what makes the query, and rounds once.
    scaled = query.astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
    grouped = padded(scaled.astype(query.dtype), query_multiple)
    grouped = grouped.reshape(grouped.shape[0], kv_heads, heads // kv_heads, *grouped.shape[2:])
    out = _attention(
        grouped,
        padded(key, key_multiple),
        padded(value, key_multiple),
        padded_ids(ids, query_multiple),
        padded_ids(key_ids, key_multiple),
        causal,
        tiles,
        interpret,
    )
    out = out.reshape(out.shape[0], heads, *out.shape[3:]).transpose(0, 2, 1, 3)
    return out[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(query, key, value, ids, key_ids, causal, tiles, interpret):
    return _forward(query, key, value, ids, key_ids, causal, tiles, interpret)[0]


def _query_ids(ids: jax.Array) -> jax.Array:
    """Returns [B, 1, Q]: padding has the id -1, which no key has, so that it attends to nothing."""
    return jnp.where(ids == 0, -1, ids)[:, None]


def _forward(query, key, value, ids, key_ids, causal, tiles, interpret):
    forward_tiles = tiles[0]
    forward_tiles.require(forward_tiles.forward_bytes(query.shape[2], query.shape[4], query.dtype.itemsize))
    num_steps, mask_info = make_mask_info(ids, key_ids, forward_tiles, causal=causal)
    out, lse = forward(
        query,
        key,
        value,
        _query_ids(ids),
        key_ids[:, None],
        num_steps,
        mask_info,
        causal=causal,
        tiles=forward_tiles,
        interpret=interpret,
    )
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (query, key, value, ids, key_ids, out, lse)


def _backward(causal, tiles, interpret, saved, out_gradient):
    query, key, value, ids, key_ids, out, lse = saved
    backward_tiles = tiles[1]
    _, _, group, length, head_dim = query.shape
    # If the gradient of all queries does not fit in VMEM, the pass takes spans of queries one after another.
    size = backward_tiles.max_queries(group, head_dim, query.dtype.itemsize, length)
    needed = backward_tiles.backward_bytes(group, head_dim, query.dtype.itemsize, size, in_spans=size < length)
    backward_tiles.require(needed)
    delta = jnp.sum(out.astype(jnp.float32) * out_gradient.astype(jnp.float32), axis=-1)
    lse_and_delta = jnp.stack([lse, delta], axis=2)
    query_gradients: list[jax.Array] = []
    key_gradient = value_gradient = key  # summed over the spans so far
    for first in range(0, length, size):
        span = slice(first, min(first + size, length))
        query_span, query_ids, all_key_ids = query[:, :, :, span], _query_ids(ids)[..., span], key_ids[:, None]
        num_steps, mask_info = make_mask_info(
            ids[:, span], key_ids, backward_tiles, causal=causal, by_key=True, offset=first
        )
        query_gradient, key_gradient, value_gradient = backward(
            query_span,
            key,
            value,
            query_ids,
            all_key_ids,
            num_steps,
            mask_info,
            out_gradient[:, :, :, span],
            lse_and_delta[..., span],
            (key_gradient, value_gradient) if first else None,
            causal=causal,
            offset=first,
            tiles=backward_tiles,
            interpret=interpret,
        )
        query_gradient = query_gradient.swapaxes(-1, -2) * math.log(2.0)  # scores are to base 2
        query_gradients.append(query_gradient.astype(query.dtype))
    key_gradient *= math.log(2.0)
    return (
        jnp.concatenate(query_gradients, axis=3),
        key_gradient.astype(key.dtype),
        value_gradient.astype(value.dtype),
        None,
        None,
    )


_attention.defvjp(_forward, _backward)
