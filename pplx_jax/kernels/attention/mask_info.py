"""Which tiles of scores hold anything, as tables that a kernel reads ahead; others are not fetched and not computed.

Tiles meet where their ranges of segments do. That is exact where the ids of a row ascend, and elsewhere holds too many
tiles, never too few: what a kernel masks decides.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pplx_jax.kernels.attention.tiles import LANES, Tiles

FIRST, LAST, PADDED = 1, 2, 4  # bits of `Visits.flags`
WINDOW_BITS = 8  # of `Visits.window`
MIXED = -1  # the segment of a piece that is not all of one text


class Visits(NamedTuple):
    """What a kernel's grid runs down, and what it asks of a visit's parts. All int32.

    Attributes:
      count: scalar, visits there are.
      row: [N] the batch's row of each, N as many as there could be.
      query: [N] its tile of queries.
      key: [N] its tile of keys.
      flags: [N] whether it is the FIRST and the LAST of those that share what accumulates: a tile of queries, or of
        keys where the table is by key; and whether the tile of queries is PADDED.
      query_segment: [B * Q / piece] of each piece of queries, the segment of all its tokens, or MIXED.
      key_segment: [B * L / key tile] the same of tiles of keys.
      start: [B * Q / sub_query] of each sub-tile of queries, the first of the keys that it meets, in units of LANES.
      stop: [B * Q / sub_query] one past the last; 0 where it meets none.
      window: [B * Q / (sub_query * bunch)] of a bunch of sub-tiles, where one tile of keys has all that they meet and
        one step's keys are enough for each: units of LANES, half a step or all of it, and above `WINDOW_BITS` the tile.
        0 elsewhere.
      padded: [B * Q / sub_query] whether some queries of a sub-tile are padding, which see nothing.
    """

    count: jax.Array
    row: jax.Array
    query: jax.Array
    key: jax.Array
    flags: jax.Array
    query_segment: jax.Array
    key_segment: jax.Array
    start: jax.Array
    stop: jax.Array
    window: jax.Array
    padded: jax.Array


@dataclasses.dataclass(frozen=True)
class _Spans:
    """Of each tile [B, T]: the smallest and the largest segment, padding apart, and that of all its tokens or MIXED."""

    tile: int
    least: jax.Array
    most: jax.Array
    segment: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, tile: int) -> "_Spans":
        tiles = ids.reshape(ids.shape[0], -1, tile)
        most = tiles.max(-1)
        least = jnp.where(tiles > 0, tiles, jnp.iinfo(jnp.int32).max).min(-1)
        return cls(tile, least, most, jnp.where((tiles.min(-1) == most) & (most > 0), most, MIXED))

    def meet(self, keys: "_Spans", *, causal: bool, offset: jax.Array | int) -> jax.Array:
        """[B, T, tiles of keys]."""
        both = (self.least[:, :, None] <= keys.most[:, None]) & (keys.least[:, None] <= self.most[:, :, None])
        if causal:
            last = offset + (jnp.arange(both.shape[1]) + 1) * self.tile - 1
            both &= jnp.arange(both.shape[2]) * keys.tile <= last[:, None]
        return both


def table(
    query_ids: jax.Array, key_ids: jax.Array, tiles: Tiles, *, causal: bool, by_key: bool = False, offset: int = 0
) -> Visits:
    """The visits of a batch.

    Args:
      query_ids: [B, Q] segments of the queries, 0 under padding; Q a multiple of `tiles.query`.
      key_ids: [B, L] of the keys, the queries among them; L a multiple of `tiles.key`.
      tiles: sizes.
      causal: whether later keys are unseen.
      by_key: visits of one tile of keys follow each other, rather than those of one of queries.
      offset: place of the first query among the keys.
    """
    keys = _Spans.of(key_ids, tiles.key)
    meet = _Spans.of(query_ids, tiles.query).meet(keys, causal=causal, offset=offset)
    if by_key:
        meet = meet.swapaxes(1, 2)
    # What accumulates is visited once at least, so that it is written.
    visited = meet | (~meet.any(-1, keepdims=True) & (jnp.arange(meet.shape[-1]) == 0))
    place = visited.cumsum(-1)
    flags = jnp.where(place == 1, FIRST, 0) | jnp.where(place == place[..., -1:], LAST, 0)
    order = jnp.argsort(~visited.reshape(-1), stable=True)
    row, outer, inner = jnp.unravel_index(order, meet.shape)
    query, key = (inner, outer) if by_key else (outer, inner)

    padded = (query_ids.reshape(query_ids.shape[0], -1, tiles.sub_query) == 0).any(-1)
    padded_tile = padded.reshape(padded.shape[0], -1, tiles.query // tiles.sub_query).any(-1)
    flags = flags.reshape(-1)[order] | jnp.where(padded_tile[row, query], PADDED, 0)

    start, stop = stretches(query_ids, key_ids, tiles.sub_query, LANES, causal=causal, offset=offset)
    parts = (row, query, key, flags)
    parts += (_Spans.of(query_ids, tiles.piece).segment, keys.segment, start, stop)
    parts += (_window(start, stop, tiles), padded)
    return Visits(visited.sum(), *(part.reshape(-1).astype(jnp.int32) for part in parts))


def stretches(
    query_ids: jax.Array,
    key_ids: jax.Array,
    query_tile: int,
    key_tile: int,
    *,
    causal: bool,
    offset: jax.Array | int = 0,
    by_key: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Of each tile of queries, the first tile of keys that it meets and one past the last; both 0 where it meets none.

    Args:
      query_ids, key_ids, causal, offset: as of `table`.
      query_tile: queries of a tile.
      key_tile: keys of a tile.
      by_key: of each tile of keys, the tiles of queries.

    Returns:
      Two of int32 [B, tiles].
    """
    keys = _Spans.of(key_ids, key_tile)
    meet = _Spans.of(query_ids, query_tile).meet(keys, causal=causal, offset=offset)
    if by_key:
        meet = meet.swapaxes(1, 2)
    some = meet.any(-1)
    start = jnp.where(some, meet.argmax(-1), 0)
    stop = jnp.where(some, meet.shape[-1] - meet[..., ::-1].argmax(-1), 0)
    return start.astype(jnp.int32), stop.astype(jnp.int32)


def _window(start: jax.Array, stop: jax.Array, tiles: Tiles) -> jax.Array:
    """`Visits.window` [B, Q / (sub_query * bunch)] of the stretches [B, Q / sub_query]."""
    start, stop = (x.reshape(x.shape[0], -1, tiles.bunch) for x in (start, stop))
    empty, units = start >= stop, tiles.key // LANES
    last = jnp.where(empty, -1, (stop - 1) // units).max(-1)
    first = jnp.where(empty, last[..., None], start // units).min(-1)
    most, step = (stop - start).max(-1), tiles.sub_key // LANES
    size = jnp.where(most <= step // 2, step // 2, step)
    return jnp.where((first == last) & (last >= 0) & (most <= step), size | first << WINDOW_BITS, 0)


def each_bunch(
    window_of: Callable[[jax.Array], jax.Array],
    key_tile: jax.Array,
    tiles: Tiles,
    side_by_side: Callable[[jax.Array, int, int], None],
    work_piece: Callable[[jax.Array], None],
) -> None:
    """Within a kernel, works a tile of queries against one of keys, bunch by bunch.

    Args:
      window_of: `Visits.window` of a bunch of this tile of queries.
      key_tile: the tile of keys.
      tiles: sizes.
      side_by_side: works sub-tiles, from the first of so many, each against so many keys that hold all that it meets.
      work_piece: works a piece of a bunch that has no window.
    """
    bunch, step_units = tiles.bunch, tiles.sub_key // LANES
    halves, pieces = tiles.together // bunch, bunch * tiles.sub_query // tiles.piece

    def holds(number, units):
        return window_of(number) == (units | key_tile << WINDOW_BITS)

    @pl.loop(0, tiles.query // tiles.sub_query // tiles.together)
    def _(several):
        numbers = [several * halves + half for half in range(halves)]
        short = functools.reduce(jnp.logical_and, [holds(number, step_units // 2) for number in numbers])

        @pl.when(short)
        def _():
            side_by_side(several * tiles.together, tiles.together, tiles.sub_key // 2)

        @pl.loop(several * halves, jnp.where(short, several, several + 1) * halves)
        def _(number):
            @pl.when(holds(number, step_units) | holds(number, step_units // 2))
            def _():
                side_by_side(number * bunch, bunch, tiles.sub_key)

            @pl.when(window_of(number) == 0)
            def _():
                pl.loop(number * pieces, (number + 1) * pieces)(work_piece)
