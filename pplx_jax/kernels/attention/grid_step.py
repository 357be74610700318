"""What the forward and the backward kernel share: block specs, and the position of one grid step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pplx_jax.kernels.attention.mask_info import MIXED, WINDOW_BITS, MaskInfo
from pplx_jax.kernels.attention.tiles import LANES, Tiles


class BlockSpecs(NamedTuple):
    """Blocks of one grid step. The grid is (groups of key heads, steps); `MaskInfo` says which blocks a step takes."""

    query: pl.BlockSpec
    key: pl.BlockSpec
    query_ids: pl.BlockSpec
    key_ids: pl.BlockSpec

    @classmethod
    def of(cls, tiles: Tiles, kv_heads: int, group: int, head_dim: int) -> "BlockSpecs":
        """Returns the specs of queries [B, K, G, Q, E], keys [B, K, L, E], and ids [B, 1, Q] and [B, 1, L]."""
        block_q, block_kv = tiles.block_q, tiles.block_kv
        return cls(
            pl.BlockSpec(
                (None, kv_heads, group, block_q, head_dim), lambda k, n, seq, q, kv, *_: (seq[n], k, 0, q[n], 0)
            ),
            pl.BlockSpec((None, kv_heads, block_kv, head_dim), lambda k, n, seq, q, kv, *_: (seq[n], k, kv[n], 0)),
            pl.BlockSpec((None, 1, block_q), lambda k, n, seq, q, kv, *_: (seq[n], 0, q[n])),
            pl.BlockSpec((None, 1, block_kv), lambda k, n, seq, q, kv, *_: (seq[n], 0, kv[n])),
        )


@dataclasses.dataclass(frozen=True)
class GridStep:
    """The position of one grid step, read inside a kernel.

    Attributes:
      mask: refs of the prefetched tables.
      tiles: block sizes.
      num_queries: padded queries of a sequence.
      sequence, q_index, kv_index, flags: this step's entries of `MaskInfo`.
      first_query, first_key: position of the first query and key of the step's blocks.
      kv_segment: segment of the block of keys, or MIXED.
    """

    mask: MaskInfo
    tiles: Tiles
    num_queries: int
    sequence: jax.Array
    q_index: jax.Array
    kv_index: jax.Array
    flags: jax.Array
    first_query: jax.Array
    first_key: jax.Array
    kv_segment: jax.Array

    @classmethod
    def read(cls, mask: MaskInfo, tiles: Tiles, num_queries: int, num_keys: int) -> "GridStep":
        step = pl.program_id(1)
        tables = (mask.sequence, mask.q_index, mask.kv_index, mask.flags)
        sequence, q_index, kv_index, flags = (table[step] for table in tables)
        first_query, first_key = q_index * tiles.block_q, kv_index * tiles.block_kv
        kv_segment = mask.kv_segment[sequence * (num_keys // tiles.block_kv) + kv_index]
        place = sequence, q_index, kv_index, flags, first_query, first_key, kv_segment
        return cls(mask, tiles, num_queries, *place)

    @property
    def kv_units(self) -> int:
        """Keys of the step's block in units of LANES."""
        return self.tiles.block_kv // LANES

    @property
    def masked_units(self) -> int:
        """Keys of a masked block in units of LANES."""
        return self.tiles.block_kv_masked // LANES

    @property
    def num_windows(self) -> int:
        return self.tiles.block_q // self.tiles.block_q_masked // self.tiles.window_size

    def masked_index(self, block: Any) -> jax.Array:
        """Returns the index of a masked block of queries in the tables."""
        tiles = self.tiles
        blocks = tiles.block_q // tiles.block_q_masked
        return self.sequence * (self.num_queries // tiles.block_q_masked) + self.q_index * blocks + block

    def masked_block(self, block: Any) -> tuple[Any, jax.Array, jax.Array]:
        """Returns the queries of a masked block, and its range of keys in units of LANES from the step's first key."""
        index, size = self.masked_index(block), self.tiles.block_q_masked
        queries = pl.ds(pl.multiple_of(block * size, size), size)
        start, stop = (
            table[index] - self.kv_index * self.kv_units for table in (self.mask.kv_start, self.mask.kv_stop)
        )
        return queries, start, stop

    def keys(self, unit: Any, size: int) -> Any:
        """Returns the slice of `size` keys from a number of lane units on."""
        return pl.ds(pl.multiple_of(unit * LANES, LANES), size)

    def keys_of_window(self, block: Any, size: int) -> tuple[Any, Any]:
        """Returns the queries of a masked block, and `size` keys that include all that it attends to."""
        queries, start, _ = self.masked_block(block)
        return queries, self.keys(jnp.clip(start, 0, self.kv_units - size // LANES), size)

    def window(self, index: Any, q_index: Any = None) -> jax.Array:
        """Returns an entry of `MaskInfo.window`; of the step's block of queries, or of another one."""
        blocks = self.num_queries // self.tiles.block_q
        q_index = self.q_index if q_index is None else q_index
        return self.mask.window[(self.sequence * blocks + q_index) * self.num_windows + index]

    def unmasked_block(self, block: Any) -> Any:
        """Returns the queries of an unmasked block."""
        size = self.tiles.block_q_unmasked
        return pl.ds(pl.multiple_of(block * size, size), size)

    def has_one_segment(self, block: Any) -> jax.Array:
        """Returns whether an unmasked block of queries and the step's block of keys hold one and the same segment."""
        tiles = self.tiles
        blocks = tiles.block_q // tiles.block_q_unmasked
        index = self.sequence * (self.num_queries // tiles.block_q_unmasked) + self.q_index * blocks + block
        segment = self.mask.q_segment[index]
        return (segment != MIXED) & (segment == self.kv_segment)

    def for_each_window(self, interleaved: Callable[[Any, int, int], None], block: Callable[[jax.Array], None]) -> None:
        """Works the step's block of queries against its block of keys, window by window.

        Args:
          interleaved: called with the first masked block, a number of masked blocks, and a number of keys that includes
            all that each of them attends to.
          block: called with each unmasked block of a window that has no entry in `MaskInfo.window`.
        """
        tiles, size = self.tiles, self.tiles.window_size
        windows, blocks = tiles.interleave // size, size * tiles.block_q_masked // tiles.block_q_unmasked

        def has(index, units):
            return self.window(index) == (units | self.kv_index << WINDOW_BITS)

        @pl.loop(0, tiles.block_q // tiles.block_q_masked // tiles.interleave)
        def _(several):
            indices = [several * windows + place for place in range(windows)]
            short = functools.reduce(jnp.logical_and, [has(index, self.masked_units // 2) for index in indices])

            @pl.when(short)
            def _():
                interleaved(several * tiles.interleave, tiles.interleave, tiles.block_kv_masked // 2)

            @pl.loop(several * windows, jnp.where(short, several, several + 1) * windows)
            def _(index):
                @pl.when(has(index, self.masked_units) | has(index, self.masked_units // 2))
                def _():
                    interleaved(index * size, size, tiles.block_kv_masked)

                @pl.when(self.window(index) == 0)
                def _():
                    pl.loop(index * blocks, (index + 1) * blocks)(block)


@dataclasses.dataclass(frozen=True)
class KernelStep:
    """What one grid step of a pass computes with.

    Attributes:
      refs: blocks of the arrays; `refs.query` is [K, G, Q, E].
      step: the position of the step.
      causal: whether later keys are masked.
    """

    refs: Any
    step: GridStep
    causal: bool

    @property
    def tiles(self) -> Tiles:
        return self.step.tiles

    @property
    def kv_heads(self) -> int:
        return self.refs.query.shape[0]

    @property
    def group(self) -> int:
        return self.refs.query.shape[1]

    @property
    def head_dim(self) -> int:
        return self.refs.query.shape[-1]

    @property
    def mask_by_product(self) -> bool:
        """Whether columns of a product apply the mask."""
        return self.tiles.has_spare_columns(self.head_dim) and not self.causal
