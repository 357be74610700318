"""The backward pass on a TPU: all three gradients from one pass over the tiles that meet.

Scores lie transposed, keys along sublanes and queries along lanes, so that what belongs to a query (its logarithm of
sums, its delta) is a row that broadcasts for free. The gradient of the queries of a whole row of the batch stays in
fast memory until the row is done.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.attention.forward_kernel import UNSEEN, across, codes_of, product
from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.attention.visits import FIRST, MIXED, Visits, each_bunch


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    visits: Visits,
    out_gradient: jax.Array,
    sums: jax.Array,
    earlier: tuple[jax.Array, jax.Array] | None,
    *,
    causal: bool,
    offset: int,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `forward` on a stretch of its queries.

    Args:
      query: [B, K, G, Q, E], scaled as there.
      key: [B, K, L, E].
      value: [B, K, L, E].
      query_ids: [B, 1, Q].
      key_ids: [B, 1, L].
      visits: by key.
      out_gradient: [B, K, G, Q, E], with respect to its result.
      sums: [B, K, 2, G, Q], the logarithm that it returned, and the sum over E of its result times `out_gradient`.
      earlier: gradients of the key and the value from other stretches, to which this one's are added in place.
      causal: whether later keys are unseen.
      offset: place of the first query among the keys.
      tiles: sizes.
      interpret: run without a TPU.

    Returns:
      float32 gradients of the scaled query, transposed to [B, K, G, E, Q], of the key and of the value.
    """
    batch, kv_heads, group, queries_in_all, head_dim = query.shape
    length, heads = key.shape[2], math.gcd(tiles.kv_heads, kv_heads)
    queries = pl.BlockSpec(
        (None, heads, group, tiles.query, head_dim), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n], 0)
    )
    keys = pl.BlockSpec((None, heads, tiles.key, head_dim), lambda k, n, row, query, key, *_: (row[n], k, key[n], 0))
    of_both = pl.BlockSpec(
        (None, heads, 2, group, tiles.query), lambda k, n, row, query, key, *_: (row[n], k, 0, 0, query[n])
    )
    of_queries = pl.BlockSpec((None, 1, tiles.query), lambda k, n, row, query, key, *_: (row[n], 0, query[n]))
    of_keys = pl.BlockSpec((None, 1, tiles.key), lambda k, n, row, query, key, *_: (row[n], 0, key[n]))
    whole = pl.BlockSpec((None, heads, group, head_dim, queries_in_all), lambda k, n, row, *_: (row[n], k, 0, 0, 0))
    shape = (batch, kv_heads, group, head_dim, queries_in_all)
    arguments = (*visits[1:], query, key, value, query_ids, key_ids, out_gradient, sums, *(earlier or ()))
    return pl.pallas_call(
        functools.partial(_body, causal=causal, offset=offset, tiles=tiles, length=length),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits) - 1,
            grid=(kv_heads // heads, visits.count),
            in_specs=[
                queries,
                keys,
                keys,
                of_queries,
                of_keys,
                queries,
                of_both,
                *([keys, keys] if earlier else []),
            ],
            out_specs=[whole, keys, keys],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(key.shape, jnp.float32),
            jax.ShapeDtypeStruct(value.shape, jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        input_output_aliases={len(arguments) - 2: 1, len(arguments) - 1: 2} if earlier else {},
        interpret=interpret,
        name="attention_backward",
    )(*arguments)


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
    _padded_ref,
    query_ref,
    key_ref,
    value_ref,
    query_ids_ref,
    key_ids_ref,
    out_gradient_ref,
    sums_ref,
    *others,
    causal: bool,
    offset: int,
    tiles: Tiles,
    length: int,
):
    *earlier, query_gradient_ref, key_gradient_ref, value_gradient_ref = others
    kv_heads, group, _, head_dim = query_ref.shape
    in_all = query_gradient_ref.shape[-1]
    visit = pl.program_id(1)
    row, query_tile, key_tile, flags = (ref[visit] for ref in (row_ref, query_tile_ref, key_tile_ref, flags_ref))
    first_query, first_key = query_tile * tiles.query, key_tile * tiles.key
    pieces, subs, units = tiles.query // tiles.piece, tiles.piece // tiles.sub_query, tiles.key // LANES
    step_units = tiles.sub_key // LANES
    key_segment = key_segment_ref[row * (length // tiles.key) + key_tile]
    mask_by_product = tiles.has_room(head_dim) and not causal
    size, bunches = tiles.bunch * tiles.sub_query, tiles.query // (tiles.bunch * tiles.sub_query)

    def window_of(query_tile, number):
        return window_ref[(row * (in_all // tiles.query) + query_tile) * bunches + number]

    @pl.when(flags & FIRST != 0)
    def _():
        key_gradient_ref[...] = earlier[0][...] if earlier else jnp.zeros_like(key_gradient_ref)
        value_gradient_ref[...] = earlier[1][...] if earlier else jnp.zeros_like(value_gradient_ref)

        @pl.when(key_tile == 0)
        def _():
            @pl.loop(0, in_all // size)
            def _(bunch):
                @pl.when(window_of(0, bunch) == 0)
                def _():
                    zeros = jnp.zeros((kv_heads, group, head_dim, size), jnp.float32)
                    query_gradient_ref[:, :, :, pl.ds(pl.multiple_of(bunch * size, size), size)] = zeros

    def load(ref, head, queries):
        return ref[head, :, queries, :].reshape(group * queries.size, head_dim)

    def along(which, head, queries):
        """[1, R] of the first or the second of `sums`."""
        return jnp.concatenate([sums_ref[head, which, one : one + 1, queries] for one in range(group)], axis=1)

    def products(head, queries, keys, codes=None):
        """Scores of a rectangle and the gradients of their weights, both [keys, R]."""
        query, key = load(query_ref, head, queries), key_ref[head, keys, :]
        if codes is not None:
            query = jnp.concatenate([query, jnp.tile(codes[0], (group, 1))], axis=1)
            key = jnp.concatenate([key, codes[1]], axis=1)
        out_gradient = load(out_gradient_ref, head, queries)
        return product(key, query, transposed=True), product(value_ref[head, keys, :], out_gradient, transposed=True)

    def update(head, queries, keys, scores, weights_gradient, visible=None, *, alone=False):
        """Adds what a rectangle of pairs has to all three gradients; that of its queries is all, where `alone`."""
        if visible is not None:
            heads = (scores[:, one * queries.size : (one + 1) * queries.size] for one in range(group))
            scores = jnp.concatenate([jnp.where(visible, one, UNSEEN) for one in heads], axis=1)
        weights = jnp.exp2(scores - along(0, head, queries))
        of_values = product(weights.astype(value_ref.dtype), load(out_gradient_ref, head, queries))
        value_gradient_ref[head, keys, :] += of_values
        scores_gradient = (weights * (weights_gradient - along(1, head, queries))).astype(key_ref.dtype)
        key_gradient_ref[head, keys, :] += product(scores_gradient, load(query_ref, head, queries))
        of_queries = product(key_ref[head, keys, :].T, scores_gradient)
        place = pl.ds(pl.multiple_of(first_query + queries.start, tiles.sub_query), queries.size)
        for one in range(group):
            part = of_queries[:, one * queries.size : (one + 1) * queries.size]
            query_gradient_ref[head, one, :, place] = part if alone else query_gradient_ref[head, one, :, place] + part

    def rectangle(queries, keys):
        """Which pairs are to meet [keys, queries]."""
        ids = jnp.broadcast_to(key_ids_ref[:, keys], (LANES, keys.size)).T
        visible = across(ids, queries.size) == query_ids_ref[:, queries]
        if causal:
            key_place, query_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= key_place - query_place <= offset + first_query + queries.start - first_key - keys.start
        return visible

    def stretch(sub):
        """Of a sub-tile: its queries, and where the keys that it meets begin and end, in units from this tile's."""
        place = row * (in_all // tiles.sub_query) + query_tile * (pieces * subs) + sub
        queries = pl.ds(pl.multiple_of(sub * tiles.sub_query, tiles.sub_query), tiles.sub_query)
        return queries, start_ref[place] - key_tile * units, stop_ref[place] - key_tile * units

    def keys_from(unit, size):
        return pl.ds(pl.multiple_of(unit * LANES, LANES), size)

    def side_by_side(first, count, size):
        """Sub-tiles from `first` on, each against all that it meets: one's products run during another's softmax."""

        def part_of(sub):
            queries, start, _ = stretch(first + sub)
            return queries, keys_from(jnp.clip(start, 0, units - size // LANES), size)

        places = [(sub, head) for sub in range(count) for head in range(kv_heads)]
        mask = None

        def products_of(sub, head):
            nonlocal mask
            queries, keys = part_of(sub)
            if mask_by_product and head == 0:
                mask = codes_of(query_ids_ref[:, queries], key_ids_ref[:, keys], key_ref.dtype)
            return products(head, queries, keys, mask)

        ahead = products_of(*places[0])
        for place, (sub, head) in enumerate(places):
            scores, weights_gradient = ahead
            if place + 1 < len(places):
                ahead = products_of(*places[place + 1])
            queries, keys = part_of(sub)
            visible = None if mask_by_product else rectangle(queries, keys)
            update(head, queries, keys, scores, weights_gradient, visible, alone=True)

    def one_by_one(first):
        """Sub-tiles from `first` on against the part of this tile that each meets."""

        @pl.loop(first, first + subs)
        def _(sub):
            queries, start, stop = stretch(sub)
            low, high = jnp.maximum(start, 0), jnp.minimum(stop, units)

            @pl.when(low < high)
            def _():
                steps = jax.lax.div(high - low + step_units - 1, step_units)
                first = jnp.minimum(low, units - steps * step_units)

                @pl.loop(0, steps)
                def _(step):
                    keys = keys_from(first + step * step_units, tiles.sub_key)
                    visible = rectangle(queries, keys)
                    pl.loop(0, kv_heads)(
                        lambda head: update(head, queries, keys, *products(head, queries, keys), visible)
                    )

    def work_piece(piece):
        segment = query_segment_ref[row * (in_all // tiles.piece) + query_tile * pieces + piece]
        full = (segment != MIXED) & (segment == key_segment)
        if causal:
            full &= first_key + tiles.key <= offset + first_query + piece * tiles.piece + 1

        @pl.when(full)
        def _():
            queries = pl.ds(pl.multiple_of(piece * tiles.piece, tiles.piece), tiles.piece)
            keys = pl.ds(0, tiles.key)
            pl.loop(0, kv_heads)(lambda head: update(head, queries, keys, *products(head, queries, keys)))

        pl.when(~full)(lambda: one_by_one(piece * subs))

    each_bunch(lambda number: window_of(query_tile, number), key_tile, tiles, side_by_side, work_piece)
