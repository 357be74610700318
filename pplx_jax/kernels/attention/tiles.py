"""Block sizes of the TPU kernels: what fits in VMEM, and what is best for which shape on which device."""

import dataclasses
import math
from collections.abc import Callable

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_WIDE_MATRIX_UNIT = ("v6", "7")  # device kinds with 256 columns, twice those of a head
# Rows of scores that one product makes: fewer hide less latency, more spill more registers.
_ROWS_UNMASKED, _ROWS_INTERLEAVED = 1024, 512
_SIZES = ("block_q", "block_kv", "block_q_unmasked", "block_q_masked", "block_kv_masked")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Block sizes of one pass.

    A grid step has a block of queries and a block of keys in VMEM. The block of queries is divided into unmasked
    blocks. If all queries of one of these and all keys of the step belong to one segment, they are multiplied at once,
    without a mask. Otherwise it is divided into masked blocks, and each of these is multiplied by the keys that it
    attends to, `block_kv_masked` keys at a time, or half as many if that is enough.

    Attributes:
      block_q: queries of a grid step; as many rows for each query head of a group.
      block_kv: keys of a grid step.
      block_q_unmasked: queries of a product without a mask.
      block_q_masked: queries of a product with a mask.
      block_kv_masked: keys of a product with a mask.
      kv_heads: most key heads of a grid step.
      interleave: masked blocks whose computations are interleaved where half of `block_kv_masked` is enough for each;
        if 0, those of one unmasked block. See `window_size` for where half is not enough.
      wide_matrix_unit: whether the matrix unit has twice as many columns as a head, so that more columns in a product
        are free: sums of weights beside the values, masks beside queries and keys.
      vmem_limit_bytes: VMEM that a kernel may take.

    Raises:
      BadInput: a size is not a multiple of 128, or does not divide the next larger one.
    """

    block_q: int
    block_kv: int
    block_q_unmasked: int
    block_q_masked: int = 256
    block_kv_masked: int = 512
    kv_heads: int = 1
    interleave: int = 0
    wide_matrix_unit: bool = False
    vmem_limit_bytes: int = platform.vmem_limit_bytes("")

    def __post_init__(self):
        for name in _SIZES:
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"attention Tiles.{name}={size} is not a multiple of {LANES}")
        if self.block_kv_masked % (2 * LANES):
            raise BadInput(f"attention Tiles.block_kv_masked={self.block_kv_masked} is not a multiple of {2 * LANES}")
        for small, large in (
            ("block_q_unmasked", "block_q"),
            ("block_q_masked", "block_q_unmasked"),
            ("block_kv_masked", "block_kv"),
        ):
            if getattr(self, large) % getattr(self, small):
                raise BadInput(
                    f"attention Tiles.{small}={getattr(self, small)} does not divide {large}={getattr(self, large)}"
                )
        if not self.interleave:
            object.__setattr__(self, "interleave", self.block_q_unmasked // self.block_q_masked)
        interleaved = self.interleave * self.block_q_masked
        if self.block_q % interleaved or interleaved % self.block_q_unmasked:
            raise BadInput(
                f"attention Tiles.interleave={self.interleave} x block_q_masked={self.block_q_masked} is not a "
                f"multiple of block_q_unmasked={self.block_q_unmasked} that divides block_q={self.block_q}"
            )

    @property
    def window_size(self) -> int:
        """Masked blocks that are interleaved where each needs all of `block_kv_masked`.

        Half of `interleave` if that is a multiple of an unmasked block.
        """
        half = self.interleave // 2
        whole = self.interleave % 2 == 0 and half * self.block_q_masked % self.block_q_unmasked == 0
        return half if whole else self.interleave

    def heads_per_product(self, group: int) -> int:
        """Returns the query heads of a key head that share a product of interleaved blocks."""
        return _largest_divisor(group, max(1, _ROWS_INTERLEAVED // self.block_q_masked))

    def has_spare_columns(self, head_dim: int) -> bool:
        """Returns whether a product with a head has 128 columns to spare."""
        return self.wide_matrix_unit and head_dim % (2 * LANES) == LANES

    def forward_bytes(self, group: int, head_dim: int, itemsize: int) -> int:
        """Returns bytes of VMEM of the forward pass: blocks twice (double buffering), scratch, one product's scores."""
        lanes = max(head_dim, LANES)
        blocks = self.kv_heads * (2 * group * self.block_q + 2 * self.block_kv) * lanes * itemsize
        blocks += ((1 + self.kv_heads) * self.block_q + self.block_kv) * 32
        scratch = self.kv_heads * group * self.block_q * (2 * LANES + lanes) * 4
        scores = group * self.block_q_unmasked * self.block_kv * (4 + itemsize)
        return 2 * blocks + scratch + scores

    def backward_bytes(self, group: int, head_dim: int, itemsize: int, queries: int, *, in_spans: bool = False) -> int:
        """Returns bytes of VMEM of the backward pass over `queries` queries, whose gradient stays there.

        `in_spans`: they are one span of the sequence, and the gradients of keys and values from other spans are read.
        """
        lanes = max(head_dim, LANES)
        blocks = (2 * group * self.block_q + 2 * self.block_kv) * lanes * itemsize
        blocks += (4 * self.block_q + self.block_kv) * 32
        gradients = group * head_dim * queries * 4 + (4 if in_spans else 2) * self.block_kv * lanes * 4
        scores = group * self.block_q_unmasked * self.block_kv * (4 + itemsize)
        return 2 * self.kv_heads * (blocks + gradients) + scores

    def max_queries(self, group: int, head_dim: int, itemsize: int, length: int) -> int:
        """Returns how many queries have gradients that fit in VMEM: a multiple of `block_q`, or `length`."""
        if self.backward_bytes(group, head_dim, itemsize, length) <= self.vmem_limit_bytes:
            return length
        one = self.backward_bytes(group, head_dim, itemsize, self.block_q, in_spans=True)
        more = self.backward_bytes(group, head_dim, itemsize, 2 * self.block_q, in_spans=True) - one
        return min(length, self.block_q * (1 + max(self.vmem_limit_bytes - one, 0) // more))

    def shrunk_to_fit(self, bytes_needed: Callable[["Tiles"], int]) -> "Tiles":
        """Returns these tiles if they fit in VMEM, or the first smaller ones that do; the smallest if none does."""
        tiles = self
        while bytes_needed(tiles) > tiles.vmem_limit_bytes and (smaller := tiles._smaller()):
            tiles = smaller
        return tiles

    def _smaller(self) -> "Tiles | None":
        """Reduces what costs least speed: key heads, then `block_kv` or `block_q`, then the products."""
        if self.kv_heads > 1:
            return dataclasses.replace(self, kv_heads=self.kv_heads // 2)
        largest = self.block_kv >= self.block_q or self.block_q == self.block_q_unmasked
        if self.block_kv > self.block_kv_masked and largest:
            return dataclasses.replace(self, block_kv=_next_smaller(self.block_kv, self.block_kv_masked))
        block_q, unmasked, kv_masked = self.block_q, self.block_q_unmasked, self.block_kv_masked
        if block_q > unmasked:
            block_q = _next_smaller(block_q, unmasked)
        elif unmasked > LANES:
            block_q = unmasked = _next_smaller(unmasked, LANES)
        elif kv_masked > 2 * LANES:
            kv_masked = _next_smaller(kv_masked, 2 * LANES)
        else:
            return None
        q_masked = math.gcd(self.block_q_masked, unmasked)
        return dataclasses.replace(
            self,
            block_q=block_q,
            block_kv=min(self.block_kv, kv_masked) if kv_masked < self.block_kv_masked else self.block_kv,
            block_q_unmasked=unmasked,
            block_q_masked=q_masked,
            block_kv_masked=kv_masked,
            interleave=block_q // q_masked,
        )

    def require(self, needed: int) -> None:
        """Raises BadInput if `needed` bytes are more than `vmem_limit_bytes`."""
        if needed > self.vmem_limit_bytes:
            raise BadInput(
                f"attention tiles of {self.block_q} x {self.block_kv} need {needed / 2**20:.0f} MiB of VMEM, more than "
                f"{self.vmem_limit_bytes / 2**20:.0f}; make Tiles.block_q, block_kv or block_q_unmasked smaller"
            )


def choose_tiles(
    length: int, group: int, head_dim: int = LANES, itemsize: int = 2, *, device_kind: str | None = None
) -> tuple[Tiles, Tiles]:
    """Returns the tiles of the forward and of the backward pass, tuned with benchmarks/kernels.py.

    Args:
      length: tokens of a sequence; it is padded to a multiple of all tiles.
      group: query heads per key head.
      head_dim: columns of a head.
      itemsize: bytes of an element of queries, keys and values.
      device_kind: as JAX names it. If None, that of the mesh or of this process; a v5p's if neither is a TPU.
    """
    device_kind = (device_kind or platform.device_kind()).lower()
    unit = 512 if length > 256 else 256
    units = -(-length // unit)
    # One unit more if the sequence then divides into larger tiles.
    units = min((units, units + 1), key=lambda count: (_largest_divisor(count, 4) < min(3, units), count))
    unmasked = max(LANES, min(unit, _ROWS_UNMASKED // group // LANES * LANES))
    unmasked = next(size for size in range(unmasked, 0, -LANES) if unit % size == 0)
    masked = min(unmasked, 256)

    def tiles(q_units: int, kv_units: int, kv_heads: int) -> Tiles:
        block_q = unit * _largest_divisor(units, q_units)
        return Tiles(
            block_q=block_q,
            block_kv=unit * _largest_divisor(units, kv_units),
            block_q_unmasked=unmasked,
            block_q_masked=masked,
            block_kv_masked=unit,
            kv_heads=max(1, kv_heads),
            interleave=block_q // masked,
            wide_matrix_unit=any(part in device_kind for part in _WIDE_MATRIX_UNIT),
            vmem_limit_bytes=platform.vmem_limit_bytes(device_kind),
        )

    forward = tiles(4 if group <= 4 else 2 if group <= 8 else 1, 4, 8 // group)
    backward = tiles(4 if group <= 4 else 1, 4 if group <= 4 else 2, 4 // group)
    padded_length = unit * units

    def backward_bytes(tiles: Tiles) -> int:
        span = min(padded_length, 4 * tiles.block_q)  # each span is a kernel to compile
        return tiles.backward_bytes(group, head_dim, itemsize, span, in_spans=span < padded_length)

    return (
        forward.shrunk_to_fit(lambda tiles: tiles.forward_bytes(group, head_dim, itemsize)),
        backward.shrunk_to_fit(backward_bytes),
    )


def _largest_divisor(count: int, most: int) -> int:
    """Returns the largest divisor of `count` up to `most`."""
    return next(size for size in range(most, 0, -1) if count % size == 0)


def _next_smaller(size: int, unit: int) -> int:
    """Returns the next smaller of the divisors of `size` that are multiples of `unit`."""
    return unit * _largest_divisor(size // unit, size // unit - 1)
