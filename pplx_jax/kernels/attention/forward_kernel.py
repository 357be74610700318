"""The forward pass on a TPU: online softmax of a block of queries over the blocks of keys that it overlaps."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.attention.grid_step import BlockSpecs, GridStep, KernelStep
from pplx_jax.kernels.attention.lanes import MASK_VALUE, broadcast_lanes, lanes_to_row, segment_codes
from pplx_jax.kernels.attention.mask_info import LAST, PADDED, MaskInfo
from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.products import product


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    num_steps: jax.Array,
    mask_info: MaskInfo,
    *,
    causal: bool,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns attention of padded arrays.

    Args:
      query: [B, K, G, Q, E] with G query heads per key head; scaled, so that softmax weights are powers of 2.
      key: [B, K, L, E].
      value: [B, K, L, E].
      query_ids: [B, 1, Q] segment ids; padding has an id that no key has.
      key_ids: [B, 1, L].
      num_steps, mask_info: of `make_mask_info`, ordered by queries.
      causal: whether later keys are masked.
      tiles: block sizes.
      interpret: run without a TPU.

    Returns:
      [B, K, G, Q, E] in the dtype of `query`, and the logsumexp to base 2, [B, K, G, Q] float32. Both are 0 for
      queries that attend to nothing.
    """
    _, kv_heads, group, num_queries, head_dim = query.shape
    heads = math.gcd(tiles.kv_heads, kv_heads)
    specs = BlockSpecs.of(tiles, heads, group, head_dim)
    lse = pl.BlockSpec((None, heads, group, tiles.block_q), lambda k, n, seq, q, *_: (seq[n], k, 0, q[n]))
    return pl.pallas_call(
        functools.partial(_kernel, causal=causal, tiles=tiles, num_queries=num_queries, num_keys=key.shape[2]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(mask_info),
            grid=(kv_heads // heads, num_steps),
            in_specs=[specs.query, specs.key, specs.key, specs.query_ids, specs.key_ids],
            out_specs=[specs.query, lse],
            scratch_shapes=[
                pltpu.VMEM((heads, group, tiles.block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, group, tiles.block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, group, tiles.block_q, head_dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(query.shape[:-1], jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="attention_forward",
    )(*mask_info, query, key, value, query_ids, key_ids)


class _Refs(NamedTuple):
    """Blocks of the arrays of `forward`, and scratch: running maximum, sum and weighted values of each query."""

    query: Any
    key: Any
    value: Any
    query_ids: Any
    key_ids: Any
    out: Any
    lse: Any
    max: Any
    sum: Any
    acc: Any


def _kernel(*refs, causal: bool, tiles: Tiles, num_queries: int, num_keys: int):
    tables = len(MaskInfo._fields)
    step = GridStep.read(MaskInfo(*refs[:tables]), tiles, num_queries, num_keys)
    _Forward(_Refs(*refs[tables:]), step, causal).run()


class _Forward(KernelStep):
    """One grid step of the forward pass."""

    refs: _Refs

    def run(self) -> None:
        self.step.for_each_window(self.interleaved, self.unmasked_or_masked)

        @pl.when(self.step.flags & LAST != 0)
        def _():
            pl.loop(0, self.step.num_windows)(self.finish_window)

            @pl.when(self.step.flags & PADDED != 0)
            def _():
                pl.loop(0, self.tiles.block_q // self.tiles.block_q_masked)(self.clear_padding)

    def load(self, ref, head, queries, members=None):
        """Returns [members * queries, lanes] of some query heads of a key head, of all if `members` is None."""
        members = members or pl.Slice(0, self.group)
        return ref[head, members, queries, :].reshape(members.size * queries.size, ref.shape[-1])

    def store(self, ref, head, queries, x, members=None):
        members = members or pl.Slice(0, self.group)
        ref[head, members, queries, :] = x.reshape(members.size, queries.size, ref.shape[-1]).astype(ref.dtype)

    def initialize(self, queries):
        """Resets the scratch of some queries."""
        refs = self.refs
        for ref, value in ((refs.max, MASK_VALUE), (refs.sum, 0.0), (refs.acc, 0.0)):
            shape = (self.kv_heads, self.group, queries.size, ref.shape[-1])
            ref[:, :, queries, :] = jnp.full(shape, value, jnp.float32)

    def scores(self, head, queries, keys, codes=None, members=None):
        """Returns scores [members * queries, keys] float32, masked if segment codes are given."""
        query, key = self.load(self.refs.query, head, queries, members), self.refs.key[head, keys, :]
        if codes is not None:
            query_codes, key_codes = codes
            query = jnp.concatenate([query, jnp.tile(query_codes, (query.shape[0] // queries.size, 1))], axis=1)
            key = jnp.concatenate([key, key_codes], axis=1)
        return product(query, key, transposed=True)

    def softmax(self, scores, head, keys, limit=None, previous_max=None, *, full_sum=False):
        """Returns running maximum, sum of weights, and weighted values of scores [R, keys].

        The sum is of each lane; over all lanes if `full_sum`.
        """
        rows = scores.shape[0]
        if limit is not None:
            scores = jnp.minimum(scores.reshape(-1, *limit.shape), limit).reshape(rows, keys.size)
        maximum = jnp.broadcast_to(scores.max(axis=1, keepdims=True), (rows, LANES))
        maximum = maximum if previous_max is None else jnp.maximum(previous_max, maximum)
        weights = jnp.exp2(scores - broadcast_lanes(maximum, keys.size))
        value = self.refs.value[head, keys, :]
        if full_sum and self.tiles.has_spare_columns(self.head_dim):
            ones = jnp.ones((keys.size, LANES), value.dtype)
            acc = product(weights.astype(value.dtype), jnp.concatenate([value, ones], axis=1))
            return maximum, acc[:, self.head_dim :], acc[:, : self.head_dim]
        total = functools.reduce(jnp.add, [weights[:, lane : lane + LANES] for lane in range(0, keys.size, LANES)])
        total = jnp.broadcast_to(total.sum(axis=1, keepdims=True), maximum.shape) if full_sum else total
        return maximum, total, product(weights.astype(value.dtype), value)

    def update(self, head, queries, keys, limit=None):
        """Adds some keys to the scratch of some queries: one step of online softmax."""
        refs = self.refs
        previous = self.load(refs.max, head, queries)
        maximum, total, acc = self.softmax(self.scores(head, queries, keys), head, keys, limit, previous)
        decay = jnp.exp2(previous - maximum)
        self.store(refs.max, head, queries, maximum)
        self.store(refs.sum, head, queries, self.load(refs.sum, head, queries) * decay + total)
        rescaled = self.load(refs.acc, head, queries) * broadcast_lanes(decay, self.head_dim)
        self.store(refs.acc, head, queries, rescaled + acc)

    def write(self, head, queries, maximum, total, acc, members=None):
        """Writes the output and the logsumexp of queries that attend to at least one key."""
        refs, members = self.refs, members or pl.Slice(0, self.group)
        inverse = 1.0 / total if refs.out.dtype == jnp.float32 else pl.reciprocal(total, approx=True)
        self.store(refs.out, head, queries, acc * broadcast_lanes(inverse, self.head_dim), members)
        lse = lanes_to_row(maximum) + jnp.log2(lanes_to_row(total))
        for place in range(members.size):
            member = slice(members.start + place, members.start + place + 1)
            refs.lse[head, member, queries] = lse[:, place * queries.size : (place + 1) * queries.size]

    def score_limit(self, queries, keys):
        """Returns [queries, keys]: MASK_VALUE for a masked pair, more than any score otherwise."""
        step = self.step
        ids = jnp.broadcast_to(self.refs.query_ids[:, queries], (LANES, queries.size)).T
        visible = broadcast_lanes(ids, keys.size) == self.refs.key_ids[:, keys]
        if self.causal:
            query_place, key_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= key_place - query_place <= step.first_query + queries.start - step.first_key - keys.start
        return jnp.where(visible, -MASK_VALUE, MASK_VALUE)

    def interleaved(self, first, count, num_keys):
        """Finishes `count` masked blocks of queries, each over `num_keys` keys that include all it attends to.

        The matrix products of one block run during the softmax of another.
        """
        refs, group = self.refs, self.tiles.heads_per_product(self.group)
        members = [pl.Slice(first, group) for first in range(0, self.group, group)]
        heads = list(itertools.product(range(self.kv_heads), members))
        blocks = [(*head, block) for head in heads for block in range(count)]
        # A large limit is expensive to compute again, a small one to keep in registers.
        if self.mask_by_product or num_keys == self.tiles.block_kv_masked:
            blocks = [(*head, block) for block in range(count) for head in heads]
        codes = None

        def scores_at(place):
            nonlocal codes
            head, members, block = blocks[place]
            if self.mask_by_product and (place == 0 or blocks[place - 1][-1] != block):
                queries, keys = self.step.keys_of_window(first + block, num_keys)
                codes = segment_codes(refs.query_ids[:, queries], refs.key_ids[:, keys], refs.query.dtype)
            return self.scores(head, *self.step.keys_of_window(first + block, num_keys), codes, members)

        scores, limit, limited = scores_at(0), None, None
        for place, (head, members, block) in enumerate(blocks):
            following = scores_at(place + 1) if place + 1 < len(blocks) else scores
            queries, keys = self.step.keys_of_window(first + block, num_keys)
            if limited != block and not self.mask_by_product:
                limit, limited = self.score_limit(queries, keys), block
            self.write(head, queries, *self.softmax(scores, head, keys, limit, full_sum=True), members)
            scores = following

    def unmasked_or_masked(self, block):
        """Adds the step's keys to an unmasked block of queries; masked block by masked block if it needs a mask."""
        step, tiles = self.step, self.tiles
        unmasked = step.has_one_segment(block) & (step.kv_units > step.masked_units)
        if self.causal:
            unmasked &= step.first_key + tiles.block_kv <= step.first_query + block * tiles.block_q_unmasked + 1
        masked_blocks = tiles.block_q_unmasked // tiles.block_q_masked

        @pl.when(unmasked)
        def _():
            queries = step.unmasked_block(block)
            pl.when(step.masked_block(block * masked_blocks)[1] >= 0)(lambda: self.initialize(queries))
            pl.loop(0, self.kv_heads)(lambda head: self.update(head, queries, pl.ds(0, tiles.block_kv)))

        @pl.when(~unmasked)
        def _():
            first = block * masked_blocks
            pl.loop(first, first + masked_blocks)(self.masked)

    def masked(self, block):
        """Adds those of the step's keys that a masked block of queries attends to, `block_kv_masked` at a time."""
        step, tiles = self.step, self.tiles
        queries, start, stop = step.masked_block(block)

        @pl.when((start < step.kv_units) & (stop > 0))
        def _():
            pl.when(start >= 0)(lambda: self.initialize(queries))
            low, high = jnp.maximum(start, 0), jnp.minimum(stop, step.kv_units)
            count = jax.lax.div(high - low + step.masked_units - 1, step.masked_units)
            low = jnp.minimum(low, step.kv_units - count * step.masked_units)

            @pl.loop(0, count)
            def _(place):
                keys = step.keys(low + place * step.masked_units, tiles.block_kv_masked)
                limit = self.score_limit(queries, keys)
                pl.loop(0, self.kv_heads)(lambda head: self.update(head, queries, keys, limit))

    def finish_window(self, window):
        """Writes the results of a window whose masked blocks were not finished by `interleaved`."""
        size = self.tiles.window_size

        @pl.when(self.step.window(window) == 0)
        def _():
            pl.loop(window * size, (window + 1) * size)(self.finish_block)

    def finish_block(self, block):
        """Writes the results of a masked block from the scratch."""
        refs, (queries, start, stop) = self.refs, self.step.masked_block(block)
        shape = (self.kv_heads, self.group, queries.size)

        @pl.when(start >= stop)
        def _():
            refs.out[:, :, queries, :] = jnp.zeros((*shape, self.head_dim), refs.out.dtype)
            refs.lse[:, :, queries] = jnp.full(shape, MASK_VALUE)

        @pl.when(start < stop)
        def _():
            @pl.loop(0, self.kv_heads)
            def _(head):
                maximum, acc = self.load(refs.max, head, queries), self.load(refs.acc, head, queries)
                total = self.load(refs.sum, head, queries).sum(axis=1, keepdims=True)
                self.write(head, queries, maximum, jnp.broadcast_to(total, maximum.shape), acc)

    def clear_padding(self, block):
        """Sets the results of a masked block's padding, which attended to nothing, to zero."""

        @pl.when(self.step.mask.padded[self.step.masked_index(block)] != 0)
        def _():
            pl.loop(0, self.kv_heads)(lambda head: self._clear(head, self.step.masked_block(block)[0]))

    def _clear(self, head, queries):
        out_ref, lse_ref = self.refs.out, self.refs.lse
        for place in range(self.group):
            lse = lse_ref[head, place : place + 1, queries]
            seen = jnp.broadcast_to(lse, (LANES, queries.size)).T > MASK_VALUE / 2
            out = out_ref[head, place, queries, :]
            out_ref[head, place, queries, :] = jnp.where(broadcast_lanes(seen, self.head_dim), out, jnp.zeros_like(out))
            lse_ref[head, place : place + 1, queries] = jnp.where(lse > MASK_VALUE / 2, lse, 0.0)
