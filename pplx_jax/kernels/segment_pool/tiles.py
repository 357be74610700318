"""Block sizes of the pooling kernel."""

import dataclasses

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_MAX_BYTES = 48 * 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Blocks of the hidden states.

    Attributes:
      block_length: tokens of a block.
      block_width: dimensions of a block.
      vmem_limit_bytes: VMEM that the kernel may take.

    Raises:
      BadInput: a size is not a multiple of 128.
    """

    block_length: int
    block_width: int
    vmem_limit_bytes: int = _MAX_BYTES

    def __post_init__(self):
        for name in ("block_length", "block_width"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"segment_pool Tiles.{name}={size} is not a multiple of {LANES}")

    def bytes(self, slots: int, itemsize: int) -> int:
        """Returns bytes of VMEM: blocks twice (double buffering), sums, slots of tokens, masked hidden states."""
        length, width = self.block_length, self.block_width
        blocks = length * width * itemsize + slots * (width + LANES) * 4 + 32 * length
        return 2 * blocks + slots * width * 8 + slots * length * 8 + length * width * itemsize

    def require(self, slots: int, itemsize: int) -> None:
        """Raises BadInput if the tiles need more than `vmem_limit_bytes`."""
        if (needed := self.bytes(slots, itemsize)) > self.vmem_limit_bytes:
            raise BadInput(
                f"segment_pool tiles of {self.block_length} x {self.block_width} need {needed / 2**20:.0f} MiB of "
                f"VMEM, more than {self.vmem_limit_bytes / 2**20:.0f}; make Tiles.block_length or block_width smaller"
            )


def choose_tiles(length: int, width: int, slots: int, itemsize: int) -> Tiles:
    """Returns the largest tiles that fit the device. The dimensions of a token come first: they are contiguous."""
    limit = min(_MAX_BYTES, platform.vmem_limit_bytes(platform.device_kind()))
    padded_length, padded_width = -(-length // LANES) * LANES, -(-width // LANES) * LANES
    candidates = [
        Tiles(size, part, limit)
        for part in _divisors(padded_width)
        for size in _divisors(padded_length)
        if size <= 1024
    ]
    return next((tiles for tiles in candidates if tiles.bytes(slots, itemsize) <= limit), candidates[-1])


def _divisors(size: int) -> list[int]:
    """Returns the multiples of 128 that divide `size`, the largest first."""
    return [part for part in range(size, 0, -LANES) if size % part == 0]
