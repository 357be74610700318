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

from pplx_jax.kernels.attention.forward_kernel import UNSEEN, across, product
from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.attention.visits import FIRST, LAST, MIXED, Visits

_LN2 = math.log(2.0)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    visits: Visits,
    out_gradient: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
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
      lse: [B, K, G, Q], as it returned.
      delta: [B, K, G, Q], the sum over E of the result times `out_gradient`.
      earlier: gradients of the key and the value from other stretches, to which this one's are added in place.
      causal: whether later keys are unseen.
      offset: place of the first query among the keys.
      tiles: sizes.
      interpret: run without a TPU.

    Returns:
      float32 gradients of the scaled query, transposed to [B, K, G, E, Q], of the key and of the value.
    """
    batch, kv_heads, group, queries_in_all, head_dim = query.shape
    length = key.shape[2]
    queries = pl.BlockSpec(
        (None, None, group, tiles.query, head_dim), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n], 0)
    )
    keys = pl.BlockSpec((None, None, tiles.key, head_dim), lambda k, n, row, query, key, *_: (row[n], k, key[n], 0))
    sums = pl.BlockSpec((None, None, group, tiles.query), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n]))
    of_queries = pl.BlockSpec((None, 1, tiles.query), lambda k, n, row, query, key, *_: (row[n], 0, query[n]))
    of_keys = pl.BlockSpec((None, 1, tiles.key), lambda k, n, row, query, key, *_: (row[n], 0, key[n]))
    whole = pl.BlockSpec((None, None, group, head_dim, queries_in_all), lambda k, n, row, *_: (row[n], k, 0, 0, 0))
    shape = (batch, kv_heads, group, head_dim, queries_in_all)
    arguments = (*visits[1:], query, key, value, query_ids, key_ids, out_gradient, lse, delta, *(earlier or ()))
    return pl.pallas_call(
        functools.partial(_body, causal=causal, offset=offset, tiles=tiles, length=length),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits) - 1,
            grid=(kv_heads, visits.count),
            in_specs=[
                queries,
                keys,
                keys,
                of_queries,
                of_keys,
                queries,
                sums,
                sums,
                *([keys, keys] if earlier else []),
            ],
            out_specs=[whole, keys, keys],
            scratch_shapes=[
                pltpu.VMEM((head_dim, tiles.key), key.dtype),
                pltpu.VMEM((tiles.key, LANES), jnp.int32),
            ],
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
    _window_ref,
    _padded_ref,
    query_ref,
    key_ref,
    value_ref,
    query_ids_ref,
    key_ids_ref,
    out_gradient_ref,
    lse_ref,
    delta_ref,
    *others,
    causal: bool,
    offset: int,
    tiles: Tiles,
    length: int,
):
    *earlier, query_gradient_ref, key_gradient_ref, value_gradient_ref, transposed_key_ref, ids_ref = others
    group, _, head_dim = query_ref.shape
    in_all = query_gradient_ref.shape[-1]
    visit = pl.program_id(1)
    row, query_tile, key_tile, flags = (ref[visit] for ref in (row_ref, query_tile_ref, key_tile_ref, flags_ref))
    first_query, first_key = query_tile * tiles.query, key_tile * tiles.key
    pieces, subs, units = tiles.query // tiles.piece, tiles.piece // tiles.sub_query, tiles.key // LANES
    step_units = tiles.sub_key // LANES
    key_segment = key_segment_ref[row * (length // tiles.key) + key_tile]

    @pl.when(flags & FIRST != 0)
    def _():
        transposed_key_ref[...] = key_ref[...].T
        ids_ref[...] = jnp.broadcast_to(key_ids_ref[...], (LANES, tiles.key)).T
        key_gradient_ref[...] = earlier[0][...] / _LN2 if earlier else jnp.zeros_like(key_gradient_ref)
        value_gradient_ref[...] = earlier[1][...] if earlier else jnp.zeros_like(value_gradient_ref)

        @pl.when(key_tile == 0)
        def _():
            query_gradient_ref[...] = jnp.zeros_like(query_gradient_ref)

    def load(ref, queries):
        return ref[:, queries, :].reshape(group * queries.size, head_dim)

    def along(ref, queries):
        """[1, R] of a reference [G, queries]."""
        return jnp.concatenate([ref[head : head + 1, queries] for head in range(group)], axis=1)

    def update(queries, keys, visible=None):
        """Adds what a rectangle of pairs has to all three gradients."""
        query, out_gradient = load(query_ref, queries), load(out_gradient_ref, queries)
        scores = product(key_ref[keys, :], query, transposed=True)
        if visible is not None:
            heads = (scores[:, head * queries.size : (head + 1) * queries.size] for head in range(group))
            scores = jnp.concatenate([jnp.where(visible, head, UNSEEN) for head in heads], axis=1)
        weights = jnp.exp2(scores - along(lse_ref, queries))
        value_gradient_ref[keys, :] += product(weights.astype(value_ref.dtype), out_gradient)
        weights_gradient = product(value_ref[keys, :], out_gradient, transposed=True)
        scores_gradient = (weights * (weights_gradient - along(delta_ref, queries))).astype(key_ref.dtype)
        key_gradient_ref[keys, :] += product(scores_gradient, query)
        query_gradient = product(transposed_key_ref[:, keys], scores_gradient)
        place = pl.ds(pl.multiple_of(first_query + queries.start, tiles.sub_query), queries.size)
        for head in range(group):
            query_gradient_ref[head, :, place] += query_gradient[:, head * queries.size : (head + 1) * queries.size]

    def rectangle(queries, keys):
        """Which pairs are to meet [keys, queries]."""
        visible = across(ids_ref[keys, :], queries.size) == query_ids_ref[:, queries]
        if causal:
            key_place, query_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= key_place - query_place <= offset + first_query + queries.start - first_key - keys.start
        return visible

    @pl.loop(0, pieces)
    def _(piece):
        segment = query_segment_ref[row * (in_all // tiles.piece) + query_tile * pieces + piece]
        full = (segment != MIXED) & (segment == key_segment)
        if causal:
            full &= first_key + tiles.key <= offset + first_query + piece * tiles.piece + 1

        @pl.when(full)
        def _():
            queries = pl.ds(pl.multiple_of(piece * tiles.piece, tiles.piece), tiles.piece)
            update(queries, pl.ds(0, tiles.key))

        @pl.when(~full)
        def _():
            @pl.loop(piece * subs, (piece + 1) * subs)
            def _(sub):
                place = row * (in_all // tiles.sub_query) + query_tile * (pieces * subs) + sub
                queries = pl.ds(pl.multiple_of(sub * tiles.sub_query, tiles.sub_query), tiles.sub_query)
                low = jnp.maximum(start_ref[place] - key_tile * units, 0)
                high = jnp.minimum(stop_ref[place] - key_tile * units, units)
                short = high - low <= step_units // 2

                @pl.when((low < high) & short)
                def _():
                    size = tiles.sub_key // 2
                    keys = pl.ds(pl.multiple_of(jnp.minimum(low, units - size // LANES) * LANES, LANES), size)
                    update(queries, keys, rectangle(queries, keys))

                @pl.when((low < high) & ~short)
                def _():
                    steps = jax.lax.div(high - low + step_units - 1, step_units)
                    first = jnp.minimum(low, units - steps * step_units)

                    @pl.loop(0, steps)
                    def _(step):
                        keys = pl.ds(pl.multiple_of((first + step * step_units) * LANES, LANES), tiles.sub_key)
                        update(queries, keys, rectangle(queries, keys))

    @pl.when(flags & LAST != 0)
    def _():  # scores are to base 2
        key_gradient_ref[...] *= _LN2
