"""The forward pass on a TPU: online softmax, a tile of queries against the tiles of keys that it meets."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.attention.tiles import LANES, Tiles
from pplx_jax.kernels.attention.visits import FIRST, LAST, MIXED, Visits

UNSEEN = -1e30  # the score of a pair that is not to meet; far from float32's end, so that differences stay finite
_NT, _NN = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))


def product(a: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """a @ b, or a @ b.T, in float32; exact where the arguments are float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = _NT if transposed else _NN
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def across(x: jax.Array, width: int) -> jax.Array:
    """x [R, 128] of equal lanes, as wide as it is needed."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, width // LANES))


def along_lanes(x: jax.Array) -> jax.Array:
    """x [R, 128] of equal lanes, as [1, R]: of each 128 rows the diagonal, summed."""
    rows = x.reshape(-1, LANES, LANES)
    shape = (LANES, LANES)
    diagonal = jax.lax.broadcasted_iota(jnp.int32, shape, 0) == jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    parts = [jnp.where(diagonal, rows[part], 0).sum(axis=0, keepdims=True) for part in range(rows.shape[0])]
    return jnp.concatenate(parts, axis=1)


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
    queries = pl.BlockSpec(
        (None, None, group, tiles.query, head_dim), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n], 0)
    )
    keys = pl.BlockSpec((None, None, tiles.key, head_dim), lambda k, n, row, query, key, *_: (row[n], k, key[n], 0))
    sums = pl.BlockSpec(
        (None, None, group, tiles.query), lambda k, n, row, query, key, *_: (row[n], k, 0, query[n])
    )
    of_queries = pl.BlockSpec((None, 1, tiles.query), lambda k, n, row, query, key, *_: (row[n], 0, query[n]))
    of_keys = pl.BlockSpec((None, 1, tiles.key), lambda k, n, row, query, key, *_: (row[n], 0, key[n]))
    return pl.pallas_call(
        functools.partial(_body, causal=causal, tiles=tiles, in_all=in_all, length=key.shape[2]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits) - 1,
            grid=(kv_heads, visits.count),
            in_specs=[queries, keys, keys, of_queries, of_keys],
            out_specs=[queries, sums],
            scratch_shapes=[
                pltpu.VMEM((group, tiles.query, LANES), jnp.float32),
                pltpu.VMEM((group, tiles.query, LANES), jnp.float32),
                pltpu.VMEM((group, tiles.query, head_dim), jnp.float32),
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
    group, _, head_dim = query_ref.shape
    visit = pl.program_id(1)
    row, query_tile, key_tile, flags = (ref[visit] for ref in (row_ref, query_tile_ref, key_tile_ref, flags_ref))
    first_query, first_key = query_tile * tiles.query, key_tile * tiles.key
    pieces, subs, units = tiles.query // tiles.piece, tiles.piece // tiles.sub_query, tiles.key // LANES
    step_units = tiles.sub_key // LANES
    key_segment = key_segment_ref[row * (length // tiles.key) + key_tile]

    def load(ref, queries):
        return ref[:, queries, :].reshape(group * queries.size, ref.shape[-1])

    def store(ref, queries, x):
        ref[:, queries, :] = x.reshape(group, queries.size, ref.shape[-1]).astype(ref.dtype)

    def begin(queries):
        for ref, value in ((most_ref, UNSEEN), (sum_ref, 0.0), (mixed_ref, 0.0)):
            ref[:, queries, :] = jnp.full((group, queries.size, ref.shape[-1]), value, jnp.float32)

    def part(queries, keys, visible=None, before=None):
        """Running maximum, sum (of each lane) and mix of `queries` with a stretch of keys."""
        size = group * queries.size
        scores = product(load(query_ref, queries), key_ref[keys, :], transposed=True)
        if visible is not None:
            scores = scores.reshape(group, queries.size, keys.size)
            scores = jnp.where(visible[None], scores, UNSEEN).reshape(size, keys.size)
        most = jnp.broadcast_to(scores.max(axis=1, keepdims=True), (size, LANES))
        most = most if before is None else jnp.maximum(before, most)
        weights = jnp.exp2(scores - across(most, keys.size))
        total = functools.reduce(jnp.add, [weights[:, lane : lane + LANES] for lane in range(0, keys.size, LANES)])
        return most, total, product(weights.astype(value_ref.dtype), value_ref[keys, :])

    def update(queries, keys, visible=None):
        before = load(most_ref, queries)
        most, total, mixed = part(queries, keys, visible, before)
        decay = jnp.exp2(before - most)
        store(most_ref, queries, most)
        store(sum_ref, queries, load(sum_ref, queries) * decay + total)
        store(mixed_ref, queries, load(mixed_ref, queries) * across(decay, head_dim) + mixed)

    def finish(queries, most, total, mixed):
        inverse = jnp.where(most > UNSEEN / 2, 1.0 / total.sum(axis=1, keepdims=True), 0.0)
        store(out_ref, queries, mixed * across(inverse, head_dim))
        most, inverse = along_lanes(most), along_lanes(inverse)
        lse = jnp.where(inverse > 0, most - jnp.log2(inverse), 0.0)
        for head in range(group):
            lse_ref[head : head + 1, queries] = lse[:, head * queries.size : (head + 1) * queries.size]

    def rectangle(queries, keys):
        """Which pairs are to meet [queries, keys]."""
        ids = jnp.broadcast_to(query_ids_ref[:, queries], (LANES, queries.size)).T
        visible = across(ids, keys.size) == key_ids_ref[:, keys]
        if causal:
            query_place, key_place = (jax.lax.broadcasted_iota(jnp.int32, visible.shape, axis) for axis in (0, 1))
            visible &= key_place - query_place <= first_query + queries.start - first_key - keys.start
        return visible

    def stretch(sub):
        """Of a sub-tile: its queries, and where the keys that it meets begin and end, in units from this tile's."""
        place = row * (in_all // tiles.sub_query) + query_tile * (pieces * subs) + sub
        queries = pl.ds(pl.multiple_of(sub * tiles.sub_query, tiles.sub_query), tiles.sub_query)
        return queries, start_ref[place] - key_tile * units, stop_ref[place] - key_tile * units

    def at_once(start, stop):
        """Whether this one step is all there is to a sub-tile."""
        return (0 <= start) & (start < stop) & (stop <= units) & (stop - start <= step_units)

    def keys_from(unit, size):
        return pl.ds(pl.multiple_of(unit * LANES, LANES), size)

    @pl.loop(0, pieces)
    def _(piece):
        segment = query_segment_ref[row * (in_all // tiles.piece) + query_tile * pieces + piece]
        full = (segment != MIXED) & (segment == key_segment) & (units > step_units)
        if causal:
            full &= first_key + tiles.key <= first_query + piece * tiles.piece + 1

        @pl.when(full)
        def _():
            queries = pl.ds(pl.multiple_of(piece * tiles.piece, tiles.piece), tiles.piece)
            pl.when(stretch(piece * subs)[1] >= 0)(lambda: begin(queries))
            update(queries, pl.ds(0, tiles.key))

        @pl.when(~full)
        def _():
            @pl.loop(piece * subs, (piece + 1) * subs)
            def _(sub):
                queries, start, stop = stretch(sub)
                once, short = at_once(start, stop), stop - start <= step_units // 2

                for size, chosen in ((tiles.sub_key // 2, short), (tiles.sub_key, ~short)):

                    @pl.when(once & chosen)
                    def _(size=size):
                        keys = keys_from(jnp.minimum(start, units - size // LANES), size)
                        finish(queries, *part(queries, keys, rectangle(queries, keys)))

                @pl.when(~once & (start < units) & (stop > 0))
                def _():
                    pl.when(start >= 0)(lambda: begin(queries))
                    low, high = jnp.maximum(start, 0), jnp.minimum(stop, units)
                    steps = jax.lax.div(high - low + step_units - 1, step_units)
                    low = jnp.minimum(low, units - steps * step_units)

                    @pl.loop(0, steps)
                    def _(step):
                        keys = keys_from(low + step * step_units, tiles.sub_key)
                        update(queries, keys, rectangle(queries, keys))

    @pl.when(flags & LAST != 0)
    def _():
        @pl.loop(0, pieces * subs)
        def _(sub):
            queries, start, stop = stretch(sub)
            start, stop = start + key_tile * units, stop + key_tile * units

            @pl.when(start >= stop)
            def _():
                out_ref[:, queries, :] = jnp.zeros((group, queries.size, head_dim), out_ref.dtype)
                lse_ref[:, queries] = jnp.zeros((group, queries.size))

            in_one_tile = jax.lax.div(start, units) == jax.lax.div(stop - 1, units)

            @pl.when((start < stop) & ~(in_one_tile & (stop - start <= step_units)))
            def _():
                finish(queries, *(load(ref, queries) for ref in (most_ref, sum_ref, mixed_ref)))
