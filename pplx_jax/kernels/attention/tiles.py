"""Sizes that the TPU kernels work in: what fits, and what is best at which shape on which device."""

import dataclasses
import math
from collections.abc import Callable

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_WIDE_MATRIX_UNIT = ("v6", "7")  # 256 columns, twice a head's
_SCORE_ROWS = 1024  # rows of scores that are worked at once: fewer hide less, more spill more
_SIDE_ROWS = 512  # of each of several sub-tiles that are worked side by side


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of one pass.

    A tile of queries and a tile of keys are in fast memory at a time. A piece of the queries that is of one text, as
    all the keys of the tile are, is worked against them at once and unmasked. Of any other piece, each sub-tile is
    worked against the stretch of keys that it can meet, masked, `sub_key` at a time, or half of it where that is
    enough.

    Attributes:
      query: queries of a tile; as many rows of each head of a group.
      key: keys of a tile.
      piece: queries of a piece.
      sub_query: queries of a sub-tile.
      sub_key: keys of a step.
      kv_heads: key heads whose blocks are in fast memory together; fewer where there are not so many.
      together: sub-tiles that are worked side by side where half a step is enough for each, `bunch` where a step is;
        a piece's where 0.
      wide_products: whether the matrix unit has room for twice a head's columns, so that what shares a product with a
        head is free: the sums of a step's weights beside the values, masks beside queries and keys.
      vmem_limit_bytes: what a kernel may take of the core's fast memory.

    Raises:
      BadInput: a size is no multiple of 128, or one does not divide the next.
    """

    query: int
    key: int
    piece: int
    sub_query: int = 256
    sub_key: int = 512
    kv_heads: int = 1
    together: int = 0
    wide_products: bool = False
    vmem_limit_bytes: int = platform.fast_memory("")

    def __post_init__(self):
        for name in ("query", "key", "piece", "sub_query", "sub_key"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"attention Tiles.{name}={size} is no multiple of {LANES}")
        if self.sub_key % (2 * LANES):
            raise BadInput(f"attention Tiles.sub_key={self.sub_key} is no multiple of {2 * LANES}")
        for small, large in (("piece", "query"), ("sub_query", "piece"), ("sub_key", "key")):
            if getattr(self, large) % getattr(self, small):
                raise BadInput(
                    f"attention Tiles.{small}={getattr(self, small)} does not divide {large}={getattr(self, large)}"
                )
        if not self.together:
            object.__setattr__(self, "together", self.piece // self.sub_query)
        if self.query % (self.together * self.sub_query) or self.together * self.sub_query % self.piece:
            raise BadInput(
                f"attention Tiles.together={self.together} x sub_query={self.sub_query} is not whole pieces of "
                f"{self.piece} that divide query={self.query}"
            )

    @property
    def bunch(self) -> int:
        """Half of `together`, where that is whole pieces."""
        half = self.together // 2
        return self.together if self.together % 2 or half * self.sub_query % self.piece else half

    def heads_at_once(self, group: int) -> int:
        """Query heads of a key head that share a product where sub-tiles are worked side by side."""
        return _divisor(group, max(1, _SIDE_ROWS // self.sub_query))

    def has_room(self, head_dim: int) -> bool:
        """Whether 128 columns beside a head's are free in a product."""
        return self.wide_products and head_dim % (2 * LANES) == LANES

    def forward_bytes(self, group: int, head_dim: int, itemsize: int) -> int:
        """Fast memory of the forward pass: blocks twice, what accumulates once, one piece's scores."""
        wide = max(head_dim, LANES)
        blocks = self.kv_heads * (2 * group * self.query + 2 * self.key) * wide * itemsize
        blocks += ((1 + self.kv_heads) * self.query + self.key) * 32
        accumulators = self.kv_heads * group * self.query * (2 * LANES + wide) * 4
        scores = group * self.piece * self.key * (4 + itemsize)
        return 2 * blocks + accumulators + scores

    def backward_bytes(
        self, group: int, head_dim: int, itemsize: int, queries: int, *, in_stretches: bool = False
    ) -> int:
        """Fast memory of the backward pass over so many queries, whose gradient stays there.

        `in_stretches`: of a row whose other queries have had theirs, to which gradients of keys and values are added.
        """
        wide = max(head_dim, LANES)
        blocks = (2 * group * self.query + 2 * self.key) * wide * itemsize + (4 * self.query + self.key) * 32
        gradients = group * head_dim * queries * 4 + (4 if in_stretches else 2) * self.key * wide * 4
        scores = group * self.piece * self.key * (4 + itemsize)
        return 2 * self.kv_heads * (blocks + gradients) + scores

    def most_queries(self, group: int, head_dim: int, itemsize: int, length: int) -> int:
        """Queries of a row of `length` whose gradient fits in the backward pass, in whole tiles and one at least."""
        if self.backward_bytes(group, head_dim, itemsize, length) <= self.vmem_limit_bytes:
            return length
        one = self.backward_bytes(group, head_dim, itemsize, self.query, in_stretches=True)
        more = self.backward_bytes(group, head_dim, itemsize, 2 * self.query, in_stretches=True) - one
        return min(length, self.query * (1 + max(self.vmem_limit_bytes - one, 0) // more))

    def fitting(self, bytes_needed: Callable[["Tiles"], int]) -> "Tiles":
        """The first of these and ever smaller ones whose need of fast memory is met; the smallest where none's is."""
        tiles = self
        while bytes_needed(tiles) > tiles.vmem_limit_bytes and (smaller := tiles._smaller()):
            tiles = smaller
        return tiles

    def _smaller(self) -> "Tiles | None":
        """These, less what costs least: key heads together, then keys or queries of a tile, then of a piece."""
        if self.kv_heads > 1:
            return dataclasses.replace(self, kv_heads=self.kv_heads // 2)
        if self.key > self.sub_key and (self.key >= self.query or self.query == self.piece):
            return dataclasses.replace(self, key=_less(self.key, self.sub_key))
        query, piece, sub_key = self.query, self.piece, self.sub_key
        if query > piece:
            query = _less(query, piece)
        elif piece > LANES:
            query = piece = _less(piece, LANES)
        elif sub_key > 2 * LANES:
            sub_key = _less(sub_key, 2 * LANES)
        else:
            return None
        sub_query = math.gcd(self.sub_query, piece)
        return dataclasses.replace(
            self,
            query=query,
            key=min(self.key, sub_key) if sub_key < self.sub_key else self.key,
            piece=piece,
            sub_query=sub_query,
            sub_key=sub_key,
            together=query // sub_query,
        )

    def require(self, needed: int) -> None:
        """Raises BadInput where `needed` bytes are over `vmem_limit_bytes`."""
        if needed > self.vmem_limit_bytes:
            raise BadInput(
                f"attention tiles of {self.query} x {self.key} need {needed / 2**20:.0f} MiB of fast memory, over "
                f"{self.vmem_limit_bytes / 2**20:.0f}; make Tiles.query, key or piece smaller"
            )


def best(
    length: int, group: int, head_dim: int = LANES, itemsize: int = 2, *, device_kind: str | None = None
) -> tuple[Tiles, Tiles]:
    """Tiles of the forward and of the backward pass, by the figures of benchmarks/kernels.py.

    Args:
      length: tokens of a row; what it is padded to is a multiple of all tiles.
      group: query heads a key head.
      head_dim: columns of a head.
      itemsize: bytes of an element of queries, keys and values.
      device_kind: as JAX names it; that of the mesh or of this process where None; as a v5p has where neither is a
        TPU.
    """
    device_kind = (device_kind or platform.device_kind()).lower()
    limit = platform.fast_memory(device_kind)
    unit = 512 if length > 256 else 256
    units = -(-length // unit)
    # One unit more where the row then falls into larger tiles.
    units = min((units, units + 1), key=lambda count: (_divisor(count, 4) < min(3, units), count))
    piece = max(LANES, min(unit, _SCORE_ROWS // group // LANES * LANES))
    piece = next(size for size in range(piece, 0, -LANES) if unit % size == 0)
    common = {"piece": piece, "sub_query": min(piece, 256), "sub_key": unit, "vmem_limit_bytes": limit}
    query = unit * _divisor(units, 4 if group <= 4 else 2 if group <= 8 else 1)
    wide = any(part in device_kind for part in _WIDE_MATRIX_UNIT)
    forward = Tiles(
        query=query,
        key=unit * _divisor(units, 4),
        kv_heads=max(1, 8 // group),
        together=query // common["sub_query"],
        wide_products=wide,
        **common,
    )
    query = unit * _divisor(units, 4 if group <= 4 else 1)
    backward = Tiles(
        query=query,
        key=unit * _divisor(units, 4 if group <= 4 else 2),
        kv_heads=max(1, 4 // group),
        together=query // common["sub_query"],
        wide_products=wide,
        **common,
    )
    row = unit * units

    def backward_bytes(tiles: Tiles) -> int:
        stretch = min(row, 4 * tiles.query)  # each is a kernel to compile
        return tiles.backward_bytes(group, head_dim, itemsize, stretch, in_stretches=stretch < row)

    return (
        forward.fitting(lambda tiles: tiles.forward_bytes(group, head_dim, itemsize)),
        backward.fitting(backward_bytes),
    )


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`."""
    return next(size for size in range(most, 0, -1) if count % size == 0)


def _less(size: int, unit: int) -> int:
    """The next smaller of the divisors of `size` that are multiples of `unit`."""
    return unit * _divisor(size // unit, size // unit - 1)
