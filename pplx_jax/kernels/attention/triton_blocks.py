"""Block sizes of the GPU kernels, and the parts of each array that a program of their grid reads or writes."""

import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pplx_jax.core.errors import require

MIN_BLOCK = 16  # rows and columns of a product


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block sizes of one pass.

    Attributes:
      block_q: queries per block.
      block_kv: keys per block.
      num_warps: warps per program.
      num_stages: blocks that are loaded ahead.

    Raises:
      BadInput: a block size is not a power of 2 from 16 on.
    """

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        for name in ("block_q", "block_kv"):
            size = getattr(self, name)
            require(size >= MIN_BLOCK and size & (size - 1) == 0, self, name, f"a power of 2 from {MIN_BLOCK}")


def choose_blocks(head_dim: int, itemsize: int) -> tuple[Blocks, Blocks]:
    """Returns the blocks of the forward and of the backward pass.

    They fit the shared memory of every GPU from compute capability 8.0 on, and do not spill registers on an H100 at 128
    columns of bfloat16. They were not timed on a GPU.

    Args:
      head_dim: padded columns of a head.
      itemsize: bytes of an element of queries, keys and values.
    """
    if head_dim * itemsize > 256:
        return Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)
    return Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2)


@dataclasses.dataclass(frozen=True)
class Call:
    """A kernel call: its grid (block, sequence, head) over blocks of queries, or of keys if `by_key`, and its specs."""

    query: jax.Array
    key: jax.Array
    blocks: Blocks
    by_key: bool = False

    @property
    def group(self) -> int:
        return self.query.shape[2] // self.key.shape[2]

    @property
    def grid(self) -> tuple[int, int, int]:
        array, size = (self.key, self.blocks.block_kv) if self.by_key else (self.query, self.blocks.block_q)
        return array.shape[1] // size, array.shape[0], array.shape[2]

    def ranges(self) -> list[pl.BlockSpec]:
        """Returns the specs of the query offset [1], and of the start and stop [B, blocks] of overlapped blocks."""
        each = pl.BlockSpec((None, 1), lambda block, sequence, head: (sequence, block))
        return [pl.BlockSpec((1,), lambda block, sequence, head: (0,)), each, each]

    def ids(self, array: jax.Array, size: int | None) -> pl.BlockSpec:
        """Returns the spec of segment ids [B, L]: the program's block of `size`, or all ids of its sequence if None."""
        if size is None:
            return pl.BlockSpec((None, array.shape[1]), lambda block, sequence, head: (sequence, 0))
        return pl.BlockSpec((None, size), lambda block, sequence, head: (sequence, block))

    def block(self, array: jax.Array, size: int) -> pl.BlockSpec:
        """Returns the spec of [B, L, heads, E]: the program's block."""
        return pl.BlockSpec(
            (None, size, None, array.shape[3]), lambda block, sequence, head: (sequence, block, head, 0)
        )

    def lse_block(self, size: int) -> pl.BlockSpec:
        """Returns the spec of [B, H, L]: the program's block."""
        return pl.BlockSpec((None, None, size), lambda block, sequence, head: (sequence, head, block))

    def all_keys(self) -> pl.BlockSpec:
        """Returns the spec of [B, L, K, E]: all keys of the key head that a query head reads."""
        (_, length, _, head_dim), group = self.key.shape, self.group
        return pl.BlockSpec(
            (None, length, None, head_dim), lambda block, sequence, head: (sequence, 0, head // group, 0)
        )

    def all_queries(self) -> pl.BlockSpec:
        """Returns the spec of [B, L, H, E]: all queries of a key head's group."""
        _, length, _, head_dim = self.query.shape
        return pl.BlockSpec((None, length, self.group, head_dim), lambda block, sequence, head: (sequence, 0, head, 0))

    def all_lse(self) -> pl.BlockSpec:
        """Returns the spec of [B, H, L]: all queries of a key head's group."""
        return pl.BlockSpec((None, self.group, self.query.shape[1]), lambda block, sequence, head: (sequence, head, 0))

    def inputs(self, ids: jax.Array, key_ids: jax.Array, *, backward: bool = False) -> list[pl.BlockSpec]:
        """Returns specs of what a kernel reads: the ranges, queries, keys, values and both segment ids; in the backward
        pass also the output's gradient, lse and delta."""
        if self.by_key:
            of_queries, of_keys = None, self.blocks.block_kv
            queries, keys, lse = self.all_queries(), self.block(self.key, of_keys), self.all_lse()
        else:
            of_queries, of_keys = self.blocks.block_q, None
            queries, keys, lse = self.block(self.query, of_queries), self.all_keys(), self.lse_block(of_queries)
        forward = [*self.ranges(), queries, keys, keys, self.ids(ids, of_queries), self.ids(key_ids, of_keys)]
        return [*forward, queries, lse, lse] if backward else forward

    def run(self, kernel: Any, name: str, interpret: bool, **specs: Any) -> Any:
        blocks = self.blocks
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            compiler_params=triton.CompilerParams(num_warps=blocks.num_warps, num_stages=blocks.num_stages),
            interpret=interpret,
            name=name,
            **specs,
        )
