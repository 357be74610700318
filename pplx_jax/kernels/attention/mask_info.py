"""Tables, prefetched by the kernels, of the blocks of scores that hold an unmasked pair; all others are skipped.

Two blocks overlap if their ranges of segment ids do. This is exact if the ids of a sequence ascend. Otherwise it
selects too many blocks, never too few; the mask inside the kernel decides about each pair.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pplx_jax.kernels.attention.tiles import LANES, Tiles

FIRST, LAST, PADDED = 1, 2, 4  # bits of `MaskInfo.flags`
WINDOW_BITS = 8  # of `MaskInfo.window`, below which it holds a number of lane units
MIXED = -1  # `q_segment` or `kv_segment` of a block that holds more than one segment, or padding


class MaskInfo(NamedTuple):
    """What each step of a kernel's grid works on. All arrays are flat int32; N is the largest possible grid.

    Attributes:
      sequence: [N] index of the sequence in the batch.
      q_index: [N] index of the block of queries.
      kv_index: [N] index of the block of keys and values.
      flags: [N] FIRST and LAST step of those that accumulate into one output block (of queries, or of keys if the table
        is ordered by keys); PADDED if the block of queries contains padding.
      q_segment: [B * Q / block_q_unmasked] the segment of all queries of an unmasked block, or MIXED.
      kv_segment: [B * L / block_kv] the segment of all keys of a block, or MIXED.
      kv_start: [B * Q / block_q_masked] first key that a masked block of queries attends to, in units of LANES.
      kv_stop: [B * Q / block_q_masked] end of those keys; 0 if there are none.
      window: [B * Q / (block_q_masked * window_size)] of each window, which is `window_size` masked blocks of queries:
        the number of keys per masked block in units of LANES, half of `block_kv_masked` or all of it, plus the index of
        the block of keys shifted by `WINDOW_BITS`. 0 if a masked block of the window needs more keys or another block.
      padded: [B * Q / block_q_masked] whether a masked block of queries contains padding, which attends to nothing.
    """

    sequence: jax.Array
    q_index: jax.Array
    kv_index: jax.Array
    flags: jax.Array
    q_segment: jax.Array
    kv_segment: jax.Array
    kv_start: jax.Array
    kv_stop: jax.Array
    window: jax.Array
    padded: jax.Array


@dataclasses.dataclass(frozen=True)
class _SegmentRanges:
    """Smallest and largest segment id of each block [B, blocks] without padding, and its only segment or MIXED."""

    block: int
    smallest: jax.Array
    largest: jax.Array
    segment: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, block: int) -> "_SegmentRanges":
        blocks = ids.reshape(ids.shape[0], -1, block)
        largest = blocks.max(-1)
        smallest = jnp.where(blocks > 0, blocks, jnp.iinfo(jnp.int32).max).min(-1)
        only = jnp.where((blocks.min(-1) == largest) & (largest > 0), largest, MIXED)
        return cls(block, smallest, largest, only)

    def overlap(self, keys: "_SegmentRanges", *, causal: bool, offset: jax.Array | int) -> jax.Array:
        """Returns [B, blocks of queries, blocks of keys] bool."""
        both = (self.smallest[:, :, None] <= keys.largest[:, None]) & (
            keys.smallest[:, None] <= self.largest[:, :, None]
        )
        if causal:
            last = offset + (jnp.arange(both.shape[1]) + 1) * self.block - 1
            both &= jnp.arange(both.shape[2]) * keys.block <= last[:, None]
        return both


def make_mask_info(
    query_ids: jax.Array, key_ids: jax.Array, tiles: Tiles, *, causal: bool, by_key: bool = False, offset: int = 0
) -> tuple[jax.Array, MaskInfo]:
    """Returns the number of grid steps, an int32 scalar, and the tables of a batch.

    Args:
      query_ids: [B, Q] segment ids of the queries, 0 for padding; Q is a multiple of `tiles.block_q`.
      key_ids: [B, L] segment ids of the keys; L is a multiple of `tiles.block_kv`.
      tiles: block sizes.
      causal: whether later keys are masked.
      by_key: order the steps by blocks of keys instead of blocks of queries.
      offset: position of the first query among the keys.
    """
    keys = _SegmentRanges.of(key_ids, tiles.block_kv)
    overlap = _SegmentRanges.of(query_ids, tiles.block_q).overlap(keys, causal=causal, offset=offset)
    if by_key:
        overlap = overlap.swapaxes(1, 2)
    # Each output block needs at least one step, which writes it.
    chosen = overlap | (~overlap.any(-1, keepdims=True) & (jnp.arange(overlap.shape[-1]) == 0))
    rank = chosen.cumsum(-1)
    flags = jnp.where(rank == 1, FIRST, 0) | jnp.where(rank == rank[..., -1:], LAST, 0)
    order = jnp.argsort(~chosen.reshape(-1), stable=True)
    sequence, outer, inner = jnp.unravel_index(order, overlap.shape)
    q_index, kv_index = (inner, outer) if by_key else (outer, inner)

    padded = (query_ids.reshape(query_ids.shape[0], -1, tiles.block_q_masked) == 0).any(-1)
    padded_block = padded.reshape(padded.shape[0], -1, tiles.block_q // tiles.block_q_masked).any(-1)
    flags = flags.reshape(-1)[order] | jnp.where(padded_block[sequence, q_index], PADDED, 0)

    start, stop = overlap_ranges(query_ids, key_ids, tiles.block_q_masked, LANES, causal=causal, offset=offset)
    tables = (sequence, q_index, kv_index, flags)
    tables += (_SegmentRanges.of(query_ids, tiles.block_q_unmasked).segment, keys.segment, start, stop)
    tables += (_windows(start, stop, tiles), padded)
    return chosen.sum(), MaskInfo(*(table.reshape(-1).astype(jnp.int32) for table in tables))


def overlap_ranges(
    query_ids: jax.Array,
    key_ids: jax.Array,
    block_q: int,
    block_kv: int,
    *,
    causal: bool,
    offset: jax.Array | int = 0,
    by_key: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns, for each block of queries, the first block of keys that it overlaps and the end of those blocks.

    Args:
      query_ids, key_ids, causal, offset: as for `make_mask_info`.
      block_q: queries per block.
      block_kv: keys per block.
      by_key: return, for each block of keys, the range of blocks of queries.

    Returns:
      Two int32 arrays [B, blocks]; both are 0 for a block without overlap.
    """
    keys = _SegmentRanges.of(key_ids, block_kv)
    overlap = _SegmentRanges.of(query_ids, block_q).overlap(keys, causal=causal, offset=offset)
    if by_key:
        overlap = overlap.swapaxes(1, 2)
    some = overlap.any(-1)
    start = jnp.where(some, overlap.argmax(-1), 0)
    stop = jnp.where(some, overlap.shape[-1] - overlap[..., ::-1].argmax(-1), 0)
    return start.astype(jnp.int32), stop.astype(jnp.int32)


def _windows(start: jax.Array, stop: jax.Array, tiles: Tiles) -> jax.Array:
    """Returns `MaskInfo.window` [B, windows] from the ranges of keys [B, Q / block_q_masked]."""
    start, stop = (x.reshape(x.shape[0], -1, tiles.window_size) for x in (start, stop))
    empty, units = start >= stop, tiles.block_kv // LANES
    last = jnp.where(empty, -1, (stop - 1) // units).max(-1)
    first = jnp.where(empty, last[..., None], start // units).min(-1)
    longest, step = (stop - start).max(-1), tiles.block_kv_masked // LANES
    size = jnp.where(longest <= step // 2, step // 2, step)
    return jnp.where((first == last) & (last >= 0) & (longest <= step), size | first << WINDOW_BITS, 0)
