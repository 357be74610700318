"""The forward pass on a TPU: online softmax, a tile of queries against the tiles of keys that it meets."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.attention.visits import LAST, MIXED, PADDED, Visits, each_bunch
from pplx_jax.kernels.products import product

UNSEEN = -1e30  # the score of a pair that is not to meet; far from float32's end, so that differences stay finite
_SUBLANES = 8
_DIGIT_BITS, _BASE = 4, 16


def across(x: jax.Array, width: int) -> jax.Array:
    """x [R, 128] of equal lanes, as wide as it is needed."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, width // LANES))


def along_lanes(x: jax.Array) -> jax.Array:
    """x [R, 128] of equal lanes, as [1, R]: of each 128 rows the diagonal, summed."""
    rows = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, LANES), 0)
    lanes = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, LANES), 1)
    parts = []
    for first in range(0, x.shape[0], LANES):
        diagonal = jnp.zeros((_SUBLANES, LANES), x.dtype)
        for row in range(0, LANES, _SUBLANES):
            diagonal = jnp.where(lanes - rows == row, x[first + row : first + row + _SUBLANES], diagonal)
        parts.append(diagonal.sum(axis=0, keepdims=True))
    return jnp.concatenate(parts, axis=1)


def codes_of(query_ids: jax.Array, key_ids: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Of ids [1, Q] and [1, L], [Q, 128] and [L, 128] whose products are 0 for equal ids, UNSEEN or less for others.

    Whatever its 32 bits, an id is eight digits of sixteen values, a column each.
    """

    def has(ids):
        columns = jax.lax.broadcasted_iota(jnp.int32, (ids.shape[1], LANES), 1)
        shift, digit = columns // _BASE * _DIGIT_BITS, columns % _BASE
        ids = jnp.broadcast_to(ids, (LANES, ids.shape[1])).T
        return (ids ^ (digit << shift)) & ((_BASE - 1) << shift) == 0

    return jnp.where(has(query_ids), 1.0, 0.0).astype(dtype), jnp.where(has(key_ids), 0.0, UNSEEN).astype(dtype)


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    visits: Visits,
    *,
    causal: bool,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Attention of padded arrays.

    Args:
      query: [B, K, G, Q, E], G query heads a key head; scaled, so that weights are powers of 2 of the scores.
      key: [B, K, L, E].
      value: [B, K, L, E].
      query_ids: [B, 1, Q] segments, another number than any key's under padding.
      key_ids: [B, 1, L].
      visits: by query.
      causal: whether later keys are unseen.
      tiles: sizes.
      interpret: run without a TPU.

    Returns:
      [B, K, G, Q, E] in the dtype of `query`, zero for queries that see nothing; and [B, K, G, Q] float32, the
      logarithm to base 2 of the sum of exponentials, 0 for those.
    """
    _, kv_heads, group, in_all, head_dim = query.shape
    heads = math.gcd(tiles.kv_heads, kv_heads)
    queries = pl.BlockSpec(
        (None, heads, group, tiles.query, head_dim), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n], 0)
    )
    keys = pl.BlockSpec((None, heads, tiles.key, head_dim), lambda k, n, row, query, key, *_: (row[n], k, key[n], 0))
    sums = pl.BlockSpec((None, heads, group, tiles.query), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n]))
    of_queries = pl.BlockSpec((None, 1, tiles.query), lambda k, n, row, query, key, *_: (row[n], 0, query[n]))
    of_keys = pl.BlockSpec((None, 1, tiles.key), lambda k, n, row, query, key, *_: (row[n], 0, key[n]))
    return pl.pallas_call(
        functools.partial(_body, causal=causal, tiles=tiles, in_all=in_all, length=key.shape[2]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits) - 1,
            grid=(kv_heads // heads, visits.count),
            in_specs=[queries, keys, keys, of_queries, of_keys],
            out_specs=[queries, sums],
            scratch_shapes=[
                pltpu.VMEM((heads, group, tiles.query, LANES), jnp.float32),
                pltpu.VMEM((heads, group, tiles.query, LANES), jnp.float32),
                pltpu.VMEM((heads, group, tiles.query, head_dim), jnp.float32),
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
    )(*visits[1:], query, key, value, query_ids, key_ids)


def _body(
    row_ref,
    query_tile_ref,
    key_tile_ref,
    flags_ref,
    query_segment_ref,
    key_segment_ref,
    start_ref,
    stop_ref,
    window_ref,
    padded_ref,
    query_ref,
    key_ref,
    value_ref,
    query_ids_ref,
    key_ids_ref,
    out_ref,
    lse_ref,
    most_ref,
    sum_ref,
    mixed_ref,
    *,
    causal: bool,
    tiles: Tiles,
    in_all: int,
    length: int,
):
    kv_heads, group, _, head_dim = query_ref.shape
    visit = pl.program_id(1)
    row, query_tile, key_tile, flags = (ref[visit] for ref in (row_ref, query_tile_ref, key_tile_ref, flags_ref))
    first_query, first_key = query_tile * tiles.query, key_tile * tiles.key
    pieces, subs, units = tiles.query // tiles.piece, tiles.piece // tiles.sub_query, tiles.key // LANES
    step_units = tiles.sub_key // LANES
    key_segment = key_segment_ref[row * (length // tiles.key) + key_tile]

    everyone = pl.Slice(0, group)  # of the query heads of a key head

    def load(ref, head, queries, members=everyone):
        return ref[head, members, queries, :].reshape(members.size * queries.size, ref.shape[-1])

    def store(ref, head, queries, x, members=everyone):
        ref[head, members, queries, :] = x.reshape(members.size, queries.size, ref.shape[-1]).astype(ref.dtype)

    mask_by_product = tiles.has_room(head_dim) and not causal

    def begin(queries):
        for ref, value in ((most_ref, UNSEEN), (sum_ref, 0.0), (mixed_ref, 0.0)):
            ref[:, :, queries, :] = jnp.full((kv_heads, group, queries.size, ref.shape[-1]), value, jnp.float32)

    def scores_of(head, queries, keys, codes=None, members=everyone):
        query, key = load(query_ref, head, queries, members), key_ref[head, keys, :]
        if codes is not None:
            of_queries, of_keys = codes
            query = jnp.concatenate([query, jnp.tile(of_queries, (members.size, 1))], axis=1)
            key = jnp.concatenate([key, of_keys], axis=1)
        return product(query, key, transposed=True)

    def part(scores, head, keys, limit=None, before=None, *, whole=False):
        """Running maximum, sum and mix of scores [R, keys]; the sum of each lane, or of all where `whole`."""
        rows = scores.shape[0]
        if limit is not None:
            scores = jnp.minimum(scores.reshape(-1, *limit.shape), limit).reshape(rows, keys.size)
        most = jnp.broadcast_to(scores.max(axis=1, keepdims=True), (rows, LANES))
        most = most if before is None else jnp.maximum(before, most)
        weights = jnp.exp2(scores - across(most, keys.size))
        value = value_ref[head, keys, :]
        if whole and tiles.has_room(head_dim):
            ones = jnp.ones((keys.size, LANES), value.dtype)
            mixed = product(weights.astype(value.dtype), jnp.concatenate([value, ones], axis=1))
            return most, mixed[:, head_dim:], mixed[:, :head_dim]
        total = functools.reduce(jnp.add, [weights[:, lane : lane + LANES] for lane in range(0, keys.size, LANES)])
        total = jnp.broadcast_to(total.sum(axis=1, keepdims=True), most.shape) if whole else total
        return most, total, product(weights.astype(value.dtype), value)

    def update(head, queries, keys, limit=None):
        before = load(most_ref, head, queries)
        most, total, mixed = part(scores_of(head, queries, keys), head, keys, limit, before)
        decay = jnp.exp2(before - most)
        store(most_ref, head, queries, most)
        store(sum_ref, head, queries, load(sum_ref, head, queries) * decay + total)
        store(mixed_ref, head, queries, load(mixed_ref, head, queries) * across(decay, head_dim) + mixed)

    def finish(head, queries, most, total, mixed, members=everyone):
        """Writes what `part` gave, as if each query saw something."""
        inverse = 1.0 / total if out_ref.dtype == jnp.float32 else pl.reciprocal(total, approx=True)
        store(out_ref, head, queries, mixed * across(inverse, head_dim), members)
        lse = along_lanes(most) + jnp.log2(along_lanes(total))
        for place in range(members.size):
            member = slice(members.start + place, members.start + place + 1)
            lse_ref[head, member, queries] = lse[:, place * queries.size : (place + 1) * queries.size]

    def clear_unseen(head, queries):
        """Zeros of padding, which saw nothing."""
        for place in range(group):
            lse = lse_ref[head, place : place + 1, queries]
            seen = jnp.broadcast_to(lse, (LANES, queries.size)).T > UNSEEN / 2
            out = out_ref[head, place, queries, :]
            out_ref[head, place, queries, :] = jnp.where(across(seen, head_dim), out, jnp.zeros_like(out))
            lse_ref[head, place : place + 1, queries] = jnp.where(lse > UNSEEN / 2, lse, 0.0)

    def rectangle(queries, keys):
        """[queries, keys] UNSEEN where a pair is not to meet, and over any score elsewhere."""
        ids = jnp.broadcast_to(query_ids_ref[:, queries], (LANES, queries.size)).T
        visible = across(ids, keys.size) == key_ids_ref[:, keys]
        if causal:
            query_place, key_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= key_place - query_place <= first_query + queries.start - first_key - keys.start
        return jnp.where(visible, -UNSEEN, UNSEEN)

    def place_of(sub):
        """Of a sub-tile in the tables."""
        return row * (in_all // tiles.sub_query) + query_tile * (pieces * subs) + sub

    def stretch(sub) -> tuple[Any, jax.Array, jax.Array]:
        """Of a sub-tile: its queries, and where the keys that it meets begin and end, in units from this tile's."""
        place = place_of(sub)
        queries = pl.ds(pl.multiple_of(sub * tiles.sub_query, tiles.sub_query), tiles.sub_query)
        return queries, start_ref[place] - key_tile * units, stop_ref[place] - key_tile * units

    def keys_from(unit, size):
        return pl.ds(pl.multiple_of(unit * LANES, LANES), size)

    def side_by_side(first, count, size):
        """Sub-tiles from `first` on, each against all that it meets: one's products run during another's softmax."""
        few = tiles.heads_at_once(group)
        heads = [(head, pl.Slice(member, few)) for head in range(kv_heads) for member in range(0, group, few)]
        places = [(*head, sub) for head in heads for sub in range(count)]
        if mask_by_product or size == tiles.sub_key:  # dear to make again is a large limit, dear to keep a small one
            places = [(*head, sub) for sub in range(count) for head in heads]

        def part_of(sub):
            queries, start, _ = stretch(first + sub)
            return queries, keys_from(jnp.clip(start, 0, units - size // LANES), size)

        codes = None

        def scores_at(place):
            nonlocal codes
            head, members, sub = places[place]
            if mask_by_product and (place == 0 or places[place - 1][-1] != sub):
                queries, keys = part_of(sub)
                codes = codes_of(query_ids_ref[:, queries], key_ids_ref[:, keys], query_ref.dtype)
            return scores_of(head, *part_of(sub), codes, members)

        scores, limit, limited = scores_at(0), None, None
        for place, (head, members, sub) in enumerate(places):
            later = scores_at(place + 1) if place + 1 < len(places) else scores
            queries, keys = part_of(sub)
            if limited != sub and not mask_by_product:
                limit, limited = rectangle(queries, keys), sub
            finish(head, queries, *part(scores, head, keys, limit, whole=True), members)
            scores = later

    def one_by_one(first):
        """Sub-tiles from `first` on against the part of this tile that each meets."""

        @pl.loop(first, first + subs)
        def _(sub):
            queries, start, stop = stretch(sub)

            @pl.when((start < units) & (stop > 0))
            def _():
                pl.when(start >= 0)(lambda: begin(queries))
                low, high = jnp.maximum(start, 0), jnp.minimum(stop, units)
                steps = jax.lax.div(high - low + step_units - 1, step_units)
                low = jnp.minimum(low, units - steps * step_units)

                @pl.loop(0, steps)
                def _(step):
                    keys = keys_from(low + step * step_units, tiles.sub_key)
                    limit = rectangle(queries, keys)
                    pl.loop(0, kv_heads)(lambda head: update(head, queries, keys, limit))

    bunch = tiles.bunch
    bunches = tiles.query // tiles.sub_query // bunch

    def window_of(number):
        return window_ref[(row * (in_all // tiles.query) + query_tile) * bunches + number]

    def work_piece(piece):
        segment = query_segment_ref[row * (in_all // tiles.piece) + query_tile * pieces + piece]
        full = (segment != MIXED) & (segment == key_segment) & (units > step_units)
        if causal:
            full &= first_key + tiles.key <= first_query + piece * tiles.piece + 1

        @pl.when(full)
        def _():
            queries = pl.ds(pl.multiple_of(piece * tiles.piece, tiles.piece), tiles.piece)
            pl.when(stretch(piece * subs)[1] >= 0)(lambda: begin(queries))
            pl.loop(0, kv_heads)(lambda head: update(head, queries, pl.ds(0, tiles.key)))

        pl.when(~full)(lambda: one_by_one(piece * subs))

    each_bunch(window_of, key_tile, tiles, side_by_side, work_piece)

    @pl.when(flags & LAST != 0)
    def _():
        @pl.loop(0, bunches)
        def _(number):
            @pl.when(window_of(number) == 0)
            def _():
                @pl.loop(number * bunch, (number + 1) * bunch)
                def _(sub):
                    queries, start, stop = stretch(sub)

                    @pl.when(start >= stop)
                    def _():
                        shape = (kv_heads, group, queries.size)
                        out_ref[:, :, queries, :] = jnp.zeros((*shape, head_dim), out_ref.dtype)
                        lse_ref[:, :, queries] = jnp.full(shape, UNSEEN)

                    @pl.when(start < stop)
                    def _():
                        @pl.loop(0, kv_heads)
                        def _(head):
                            most, mixed = load(most_ref, head, queries), load(mixed_ref, head, queries)
                            total = load(sum_ref, head, queries).sum(axis=1, keepdims=True)
                            finish(head, queries, most, jnp.broadcast_to(total, most.shape), mixed)

        @pl.when(flags & PADDED != 0)
        def _():
            @pl.loop(0, pieces * subs)
            def _(sub):
                @pl.when(padded_ref[place_of(sub)] != 0)
                def _():
                    pl.loop(0, kv_heads)(lambda head: clear_unseen(head, stretch(sub)[0]))
