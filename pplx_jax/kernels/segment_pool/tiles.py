"""Sizes that the pooling kernel works in."""

import dataclasses

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_MOST_BYTES = 48 * 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of the hidden states.

    Attributes:
      length: tokens of a tile.
      width: dimensions of a tile.
      vmem_limit_bytes: what the kernel may take of the core's fast memory.

    Raises:
      BadInput: a size is no multiple of 128.
    """

    length: int
    width: int
    vmem_limit_bytes: int = _MOST_BYTES

    def __post_init__(self):
        for name in ("length", "width"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"segment_pool Tiles.{name}={size} is no multiple of {LANES}")

    def bytes(self, slots: int, itemsize: int) -> int:
        """Fast memory: blocks twice, the sums, which token is whose, and the tile without what is outside."""
        blocks = self.length * self.width * itemsize + slots * (self.width + LANES) * 4 + 32 * self.length
        return 2 * blocks + slots * self.width * 8 + slots * self.length * 8 + self.length * self.width * itemsize

    def require(self, slots: int, itemsize: int) -> None:
        """Raises BadInput where the tiles need more than `vmem_limit_bytes`."""
        if (needed := self.bytes(slots, itemsize)) > self.vmem_limit_bytes:
            raise BadInput(
                f"segment_pool tiles of {self.length} x {self.width} need {needed / 2**20:.0f} MiB of fast memory, "
                f"over {self.vmem_limit_bytes / 2**20:.0f}; make Tiles.length or width smaller"
            )


def best(length: int, width: int, slots: int, itemsize: int) -> Tiles:
    """The largest tiles that fit the device: whole rows of dimensions first, for they are read at once."""
    limit = min(_MOST_BYTES, platform.fast_memory(platform.device_kind()))
    padded_length, padded_width = -(-length // LANES) * LANES, -(-width // LANES) * LANES
    candidates = [
        Tiles(size, part, limit)
        for part in _divisors(padded_width)
        for size in _divisors(padded_length)
        if size <= 1024
    ]
    return next((tiles for tiles in candidates if tiles.bytes(slots, itemsize) <= limit), candidates[-1])


def _divisors(size: int) -> list[int]:
    """Multiples of 128 that divide `size`, the largest first."""
    return [part for part in range(size, 0, -LANES) if size % part == 0]
