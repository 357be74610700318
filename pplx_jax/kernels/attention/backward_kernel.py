"""The backward pass on a TPU: the gradients of queries, keys and values in one pass over the overlapping blocks.

Scores are transposed, keys along sublanes and queries along lanes, so that what belongs to a query (its logsumexp, its
delta) is one row, which broadcasts for free. The gradient of a sequence's queries stays in VMEM until all steps of the
sequence are done.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.attention.grid_step import BlockSpecs, GridStep, KernelStep
from pplx_jax.kernels.attention.lanes import MASK_VALUE, broadcast_lanes, segment_codes
from pplx_jax.kernels.attention.mask_info import FIRST, MaskInfo
from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.products import product


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    num_steps: jax.Array,
    mask_info: MaskInfo,
    out_gradient: jax.Array,
    lse_and_delta: jax.Array,
    previous: tuple[jax.Array, jax.Array] | None,
    *,
    causal: bool,
    offset: int,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of `forward` for a span of its queries.

    Args:
      query: [B, K, G, Q, E], scaled as for `forward`.
      key: [B, K, L, E].
      value: [B, K, L, E].
      query_ids: [B, 1, Q].
      key_ids: [B, 1, L].
      num_steps, mask_info: of `make_mask_info`, ordered by keys.
      out_gradient: [B, K, G, Q, E], the gradient of the output of `forward`.
      lse_and_delta: [B, K, 2, G, Q], the logsumexp of `forward`, and the sum over E of its output times `out_gradient`.
      previous: gradients of the key and the value from other spans of queries; this span's are added in place.
      causal: whether later keys are masked.
      offset: position of the first query among the keys.
      tiles: block sizes.
      interpret: run without a TPU.

    Returns:
      float32 gradients of the scaled query, transposed to [B, K, G, E, Q], of the key and of the value.
    """
    batch, kv_heads, group, num_queries, head_dim = query.shape
    heads = math.gcd(tiles.kv_heads, kv_heads)
    specs = BlockSpecs.of(tiles, heads, group, head_dim)
    lse = pl.BlockSpec((None, heads, 2, group, tiles.block_q), lambda k, n, seq, q, *_: (seq[n], k, 0, 0, q[n]))
    all_queries = pl.BlockSpec((None, heads, group, head_dim, num_queries), lambda k, n, seq, *_: (seq[n], k, 0, 0, 0))
    arguments = (*mask_info, query, key, value, query_ids, key_ids, out_gradient, lse_and_delta, *(previous or ()))
    in_specs = [specs.query, specs.key, specs.key, specs.query_ids, specs.key_ids, specs.query, lse]
    return pl.pallas_call(
        functools.partial(_kernel, causal=causal, offset=offset, tiles=tiles, num_keys=key.shape[2]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(mask_info),
            grid=(kv_heads // heads, num_steps),
            in_specs=[*in_specs, *([specs.key, specs.key] if previous else [])],
            out_specs=[all_queries, specs.key, specs.key],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, kv_heads, group, head_dim, num_queries), jnp.float32),
            jax.ShapeDtypeStruct(key.shape, jnp.float32),
            jax.ShapeDtypeStruct(value.shape, jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        input_output_aliases={len(arguments) - 2: 1, len(arguments) - 1: 2} if previous else {},
        interpret=interpret,
        name="attention_backward",
    )(*arguments)


class _Refs(NamedTuple):
    """Blocks of the arrays of `backward`; `query_gradient` is of all queries of the sequence."""

    query: Any
    key: Any
    value: Any
    query_ids: Any
    key_ids: Any
    out_gradient: Any
    lse_and_delta: Any
    previous: tuple[Any, ...]
    query_gradient: Any
    key_gradient: Any
    value_gradient: Any


def _kernel(*refs, causal: bool, offset: int, tiles: Tiles, num_keys: int):
    tables, outputs = len(MaskInfo._fields), refs[-3:]
    query, key, value, query_ids, key_ids, out_gradient, lse_and_delta, *previous = refs[tables:-3]
    inputs = query, key, value, query_ids, key_ids, out_gradient, lse_and_delta, tuple(previous)
    step = GridStep.read(MaskInfo(*refs[:tables]), tiles, outputs[0].shape[-1], num_keys)
    _Backward(_Refs(*inputs, *outputs), step, causal, offset).run()


@dataclasses.dataclass(frozen=True)
class _Backward(KernelStep):
    """One grid step of the backward pass."""

    refs: _Refs
    offset: int

    def run(self) -> None:
        pl.when(self.step.flags & FIRST != 0)(self.initialize)
        self.step.for_each_window(self.interleaved, self.unmasked_or_masked)

    def initialize(self):
        """Sets the gradients of the step's keys to the previous ones or to zero, and at the first keys the queries'."""
        refs, step = self.refs, self.step
        refs.key_gradient[...] = refs.previous[0][...] if refs.previous else jnp.zeros_like(refs.key_gradient)
        refs.value_gradient[...] = refs.previous[1][...] if refs.previous else jnp.zeros_like(refs.value_gradient)
        size = self.tiles.window_size * self.tiles.block_q_masked

        @pl.when(step.kv_index == 0)
        def _():
            @pl.loop(0, step.num_queries // size)
            def _(window):
                # `interleaved` writes the gradient of all other windows once, and adds nothing.
                @pl.when(step.window(window, q_index=0) == 0)
                def _():
                    zeros = jnp.zeros((self.kv_heads, self.group, self.head_dim, size), jnp.float32)
                    refs.query_gradient[:, :, :, pl.ds(pl.multiple_of(window * size, size), size)] = zeros

    def load(self, ref, head, queries):
        """Returns [G * queries, E] of the query heads of a key head."""
        return ref[head, :, queries, :].reshape(self.group * queries.size, self.head_dim)

    def lse_or_delta(self, which, head, queries):
        """Returns [1, G * queries] of the logsumexp (0) or of delta (1)."""
        ref = self.refs.lse_and_delta
        return jnp.concatenate([ref[head, which, one : one + 1, queries] for one in range(self.group)], axis=1)

    def scores(self, head, queries, keys, codes=None):
        """Returns scores and the gradients of their weights, both [keys, G * queries]; masked if codes are given."""
        query, key = self.load(self.refs.query, head, queries), self.refs.key[head, keys, :]
        if codes is not None:
            query_codes, key_codes = codes
            query = jnp.concatenate([query, jnp.tile(query_codes, (self.group, 1))], axis=1)
            key = jnp.concatenate([key, key_codes], axis=1)
        out_gradient = self.load(self.refs.out_gradient, head, queries)
        scores = product(key, query, transposed=True)
        return scores, product(self.refs.value[head, keys, :], out_gradient, transposed=True)

    def update(self, head, queries, keys, scores, weights_gradient, visible=None, *, overwrite=False):
        """Adds to the gradients of some keys, values and queries; `overwrite` writes that of the queries instead."""
        refs, size = self.refs, queries.size
        if visible is not None:
            heads = (scores[:, one * size : (one + 1) * size] for one in range(self.group))
            scores = jnp.concatenate([jnp.where(visible, one, MASK_VALUE) for one in heads], axis=1)
        weights = jnp.exp2(scores - self.lse_or_delta(0, head, queries))
        value_gradient = product(weights.astype(refs.value.dtype), self.load(refs.out_gradient, head, queries))
        refs.value_gradient[head, keys, :] += value_gradient
        scores_gradient = (weights * (weights_gradient - self.lse_or_delta(1, head, queries))).astype(refs.key.dtype)
        refs.key_gradient[head, keys, :] += product(scores_gradient, self.load(refs.query, head, queries))
        query_gradient = product(refs.key[head, keys, :].T, scores_gradient)
        place = pl.ds(pl.multiple_of(self.step.first_query + queries.start, self.tiles.block_q_masked), size)
        for one in range(self.group):
            part = query_gradient[:, one * size : (one + 1) * size]
            if not overwrite:
                part = refs.query_gradient[head, one, :, place] + part
            refs.query_gradient[head, one, :, place] = part

    def visible(self, queries, keys):
        """Returns bool [keys, queries], which pairs are not masked."""
        step = self.step
        ids = jnp.broadcast_to(self.refs.key_ids[:, keys], (LANES, keys.size)).T
        visible = broadcast_lanes(ids, queries.size) == self.refs.query_ids[:, queries]
        if self.causal:
            key_place, query_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= (
                key_place - query_place <= self.offset + step.first_query + queries.start - step.first_key - keys.start
            )
        return visible

    def interleaved(self, first, count, num_keys):
        """Works `count` masked blocks of queries, each over `num_keys` keys that include all it attends to.

        The matrix products of one block run during the softmax of another.
        """
        blocks = [(block, head) for block in range(count) for head in range(self.kv_heads)]
        codes = None

        def scores_at(block, head):
            nonlocal codes
            queries, keys = self.step.keys_of_window(first + block, num_keys)
            if self.mask_by_product and head == 0:
                codes = segment_codes(self.refs.query_ids[:, queries], self.refs.key_ids[:, keys], self.refs.key.dtype)
            return self.scores(head, queries, keys, codes)

        following = scores_at(*blocks[0])
        for place, (block, head) in enumerate(blocks):
            scores, weights_gradient = following
            if place + 1 < len(blocks):
                following = scores_at(*blocks[place + 1])
            queries, keys = self.step.keys_of_window(first + block, num_keys)
            visible = None if self.mask_by_product else self.visible(queries, keys)
            self.update(head, queries, keys, scores, weights_gradient, visible, overwrite=True)

    def unmasked_or_masked(self, block):
        """Works an unmasked block of queries over the step's keys; masked block by masked block if it needs a mask."""
        step, tiles = self.step, self.tiles
        unmasked = step.has_one_segment(block)
        if self.causal:
            unmasked &= (
                step.first_key + tiles.block_kv <= self.offset + step.first_query + block * tiles.block_q_unmasked + 1
            )
        masked_blocks = tiles.block_q_unmasked // tiles.block_q_masked

        @pl.when(unmasked)
        def _():
            queries, keys = step.unmasked_block(block), pl.ds(0, tiles.block_kv)
            pl.loop(0, self.kv_heads)(lambda head: self.update(head, queries, keys, *self.scores(head, queries, keys)))

        @pl.when(~unmasked)
        def _():
            first = block * masked_blocks
            pl.loop(first, first + masked_blocks)(self.masked)

    def masked(self, block):
        """Works those of the step's keys that a masked block of queries attends to, `block_kv_masked` at a time."""
        step = self.step
        queries, start, stop = step.masked_block(block)
        low, high = jnp.maximum(start, 0), jnp.minimum(stop, step.kv_units)

        @pl.when(low < high)
        def _():
            count = jax.lax.div(high - low + step.masked_units - 1, step.masked_units)
            first = jnp.minimum(low, step.kv_units - count * step.masked_units)

            @pl.loop(0, count)
            def _(place):
                keys = step.keys(first + place * step.masked_units, self.tiles.block_kv_masked)
                visible = self.visible(queries, keys)
                pl.loop(0, self.kv_heads)(
                    lambda head: self.update(head, queries, keys, *self.scores(head, queries, keys), visible)
                )
