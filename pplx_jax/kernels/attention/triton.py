"""Attention over packed sequences as Pallas kernels for NVIDIA GPUs, through Triton, forward and backward.

The algorithm is FlashAttention-2 (arXiv 2307.08691). A program works a block of queries, or of keys, over the range of
blocks that share a segment with it, which it reads from a small table. Arrays stay [B, L, heads, E]; the query heads of
a group read the same keys and values, which are not repeated.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from pplx_jax.kernels.attention.lanes import MASK_VALUE
from pplx_jax.kernels.attention.mask_info import overlap_ranges
from pplx_jax.kernels.attention.triton_blocks import MIN_BLOCK, Blocks, Call, choose_blocks
from pplx_jax.kernels.products import product


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    query_offset: jax.Array | int = 0,
    causal: bool = False,
    blocks: tuple[Blocks, Blocks] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns what `reference.attention` returns, in memory linear in L; blocks without a common segment are skipped.

    Args:
      query: [B, Q, H, E]; any length, any head_dim.
      key: [B, L, K, E].
      value: [B, L, K, E].
      segment_ids: [B, Q].
      key_segment_ids: [B, L] if the queries are a part of the sequence (context parallelism); `segment_ids` if None.
      query_offset: position of the first query among the keys.
      causal: as for `reference.attention`.
      blocks: block sizes of the forward and of the backward pass; `choose_blocks` if None.
      interpret: run without a GPU, slowly.

    Returns:
      [B, Q, H, E] in the dtype of `query`.
    """
    length, head_dim = query.shape[1], query.shape[3]
    ids = segment_ids.astype(jnp.int32)
    key_ids = ids if key_segment_ids is None else key_segment_ids.astype(jnp.int32)
    padded_head_dim = max(MIN_BLOCK, pl.next_power_of_2(head_dim))
    blocks = blocks or choose_blocks(padded_head_dim, query.dtype.itemsize)
    query_multiple = math.lcm(*(each.block_q for each in blocks))
    key_multiple = math.lcm(*(each.block_kv for each in blocks))

    def padded(x: jax.Array, multiple: int) -> jax.Array:
        more = -x.shape[1] % multiple
        return jnp.pad(x, ((0, 0), (0, more)) + ((0, 0), (0, padded_head_dim - head_dim)) * (x.ndim == 4))

    arrays = (padded(query, query_multiple), *(padded(x, key_multiple) for x in (key, value)))
    ids, key_ids = padded(ids, query_multiple), padded(key_ids, key_multiple)
    offset = jnp.asarray(query_offset, jnp.int32).reshape(1)
    out = _attention(*arrays, ids, key_ids, offset, head_dim**-0.5, causal, blocks, interpret)
    return out[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _attention(query, key, value, ids, key_ids, offset, scale, causal, blocks, interpret):
    return _forward(query, key, value, ids, key_ids, offset, scale, causal, blocks, interpret)[0]


def _query_ids(ids: jax.Array) -> jax.Array:
    """Returns [B, Q]: padding has the id -1, which no key has, so that it attends to nothing."""
    return jnp.where(ids == 0, -1, ids)


def _visible(query_ids, key_ids, first_query, first_key, causal: bool, *, transposed: bool = False) -> jax.Array:
    """Returns bool [queries, keys], or [keys, queries] if transposed: which pairs are not masked."""

    def pairs(of_queries, of_keys):
        return (of_queries[None], of_keys[:, None]) if transposed else (of_queries[:, None], of_keys[None])

    of_queries, of_keys = pairs(query_ids, key_ids)
    visible = of_queries == of_keys
    if causal:
        places = first_query + jnp.arange(query_ids.shape[0]), first_key + jnp.arange(key_ids.shape[0])
        of_queries, of_keys = pairs(*places)
        visible &= of_queries >= of_keys
    return visible


def _forward(query, key, value, ids, key_ids, offset, scale, causal, blocks, interpret):
    call = Call(query, key, blocks[0])
    block_q, block_kv = call.blocks.block_q, call.blocks.block_kv
    start, stop = overlap_ranges(ids, key_ids, block_q, block_kv, causal=causal, offset=offset[0])

    def kernel(offset_ref, start_ref, stop_ref, query_ref, key_ref, value_ref, ids_ref, key_ids_ref, out_ref, lse_ref):
        query, query_ids, first_query = query_ref[...], ids_ref[...], offset_ref[0] + pl.program_id(0) * block_q

        def step(block, carry):
            acc, previous_max, total = carry
            keys = pl.ds(block * block_kv, block_kv)
            scores = product(query, key_ref[keys, :], transposed=True) * (scale * math.log2(math.e))
            visible = _visible(query_ids, key_ids_ref[keys], first_query, block * block_kv, causal)
            scores = jnp.where(visible, scores, MASK_VALUE)
            maximum = jnp.maximum(previous_max, scores.max(axis=1))
            weights = jnp.where(visible, jnp.exp2(scores - maximum[:, None]), 0.0)
            decay = jnp.exp2(previous_max - maximum)
            value = value_ref[keys, :]
            acc = acc * decay[:, None] + product(weights.astype(value.dtype), value)
            return acc, maximum, total * decay + weights.sum(axis=1)

        zeros = jnp.zeros(query.shape, jnp.float32)
        carry = zeros, jnp.full((block_q,), MASK_VALUE), jnp.zeros((block_q,), jnp.float32)
        acc, maximum, total = jax.lax.fori_loop(start_ref[0], stop_ref[0], step, carry)
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_ref[...] = (acc / total[:, None]).astype(out_ref.dtype)
        lse_ref[...] = jnp.where(seen, maximum + jnp.log2(total), 0.0)

    sequences, length, heads, _ = query.shape
    out, lse = call.run(
        kernel,
        "attention_forward",
        interpret,
        in_specs=call.inputs(ids, key_ids),
        out_specs=[call.block(query, block_q), call.lse_block(block_q)],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((sequences, heads, length), jnp.float32),
        ],
    )(offset, start, stop, query, key, value, _query_ids(ids), key_ids)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (query, key, value, ids, key_ids, offset, out, lse)


class _BackwardRefs(NamedTuple):
    """What both kernels of the backward pass read: a program's block of an array, or all of its sequence."""

    offset: Any
    start: Any
    stop: Any
    query: Any
    key: Any
    value: Any
    ids: Any
    key_ids: Any
    out_gradient: Any
    lse: Any
    delta: Any


def _backward(scale, causal, blocks, interpret, saved, out_gradient):
    query, key, value, ids, key_ids, offset, out, lse = saved
    delta = jnp.einsum("blhe,blhe->bhl", out, out_gradient, preferred_element_type=jnp.float32)
    out_gradient = out_gradient.astype(query.dtype)
    block_q, block_kv = blocks[1].block_q, blocks[1].block_kv

    def softmax(scores, lse, visible):
        return jnp.where(visible, jnp.exp2(scores * (scale * math.log2(math.e)) - lse), 0.0)

    def query_kernel(*all_refs):
        refs, query_gradient_ref = _BackwardRefs(*all_refs[:-1]), all_refs[-1]
        query, out_gradient, query_ids = refs.query[...], refs.out_gradient[...], refs.ids[...]
        first_query = refs.offset[0] + pl.program_id(0) * block_q
        lse, delta = refs.lse[...][:, None], refs.delta[...][:, None]

        def step(block, query_gradient):
            keys = pl.ds(block * block_kv, block_kv)
            key = refs.key[keys, :]
            visible = _visible(query_ids, refs.key_ids[keys], first_query, block * block_kv, causal)
            weights = softmax(product(query, key, transposed=True), lse, visible)
            scores_gradient = weights * (product(out_gradient, refs.value[keys, :], transposed=True) - delta)
            return query_gradient + product(scores_gradient.astype(key.dtype), key)

        gradient = jax.lax.fori_loop(refs.start[0], refs.stop[0], step, jnp.zeros(query.shape, jnp.float32))
        query_gradient_ref[...] = (gradient * scale).astype(query_gradient_ref.dtype)

    def key_kernel(*all_refs):
        refs, key_gradient_ref, value_gradient_ref = _BackwardRefs(*all_refs[:-2]), *all_refs[-2:]
        key, value, own_ids, first_key = refs.key[...], refs.value[...], refs.key_ids[...], pl.program_id(0) * block_kv

        def step(block, carry, head):
            key_gradient, value_gradient = carry
            queries = pl.ds(block * block_q, block_q)
            query, out_gradient = refs.query[queries, head, :], refs.out_gradient[queries, head, :]
            query_ids, first_query = refs.ids[queries], refs.offset[0] + block * block_q
            visible = _visible(query_ids, own_ids, first_query, first_key, causal, transposed=True)
            weights = softmax(product(key, query, transposed=True), refs.lse[head, queries][None], visible)
            value_gradient += product(weights.astype(value.dtype), out_gradient)
            weights_gradient = product(value, out_gradient, transposed=True)
            scores_gradient = weights * (weights_gradient - refs.delta[head, queries][None])
            return key_gradient + product(scores_gradient.astype(key.dtype), query), value_gradient

        carry = (jnp.zeros(key.shape, jnp.float32),) * 2
        for head in range(refs.query.shape[1]):
            carry = jax.lax.fori_loop(refs.start[0], refs.stop[0], functools.partial(step, head=head), carry)
        key_gradient_ref[...] = (carry[0] * scale).astype(key_gradient_ref.dtype)
        value_gradient_ref[...] = carry[1].astype(value_gradient_ref.dtype)

    ranges = functools.partial(overlap_ranges, ids, key_ids, block_q, block_kv, causal=causal, offset=offset[0])
    arrays = (query, key, value, _query_ids(ids), key_ids, out_gradient, lse, delta)
    call = Call(query, key, blocks[1])
    query_gradient = call.run(
        query_kernel,
        "attention_backward_queries",
        interpret,
        in_specs=call.inputs(ids, key_ids, backward=True),
        out_specs=call.block(query, block_q),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    )(offset, *ranges(), *arrays)
    call = Call(query, key, blocks[1], by_key=True)
    key_gradient, value_gradient = call.run(
        key_kernel,
        "attention_backward_keys",
        interpret,
        in_specs=call.inputs(ids, key_ids, backward=True),
        out_specs=[call.block(key, block_kv), call.block(key, block_kv)],
        out_shape=[jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)],
    )(offset, *ranges(by_key=True), *arrays)
    return query_gradient, key_gradient, value_gradient, None, None, None


_attention.defvjp(_forward, _backward)
