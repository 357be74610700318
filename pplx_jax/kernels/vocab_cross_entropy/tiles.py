"""Block sizes of the TPU kernels: what fits in VMEM, and what is best on which device."""

import dataclasses

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Blocks of the scores.

    Attributes:
      chunk: positions whose scores exist at a time; the larger, the less often the table's gradient is read and
        written.
      block_t: positions of a grid step.
      block_v: classes of a grid step.
      block_v_max: classes that share a maximum; the product of some overlaps with the exponentials of others.
      max_block_d: most dimensions of the gradients in a grid step; on a chip with two cores each takes a half of them.
      vmem_limit_bytes: VMEM that a kernel may take.

    Raises:
      BadInput: a size is not a multiple of 128, or does not divide the next larger one.
    """

    chunk: int = 2048
    block_t: int = 512
    block_v: int = 512
    block_v_max: int = 256
    max_block_d: int = 1280
    vmem_limit_bytes: int = platform.vmem_limit_bytes("")

    def __post_init__(self):
        for name in ("chunk", "block_t", "block_v", "block_v_max", "max_block_d"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"vocab_cross_entropy Tiles.{name}={size} is not a multiple of {LANES}")
        for small, large in (("block_t", "chunk"), ("block_v_max", "block_v")):
            if getattr(self, large) % getattr(self, small):
                raise BadInput(
                    f"vocab_cross_entropy Tiles.{small}={getattr(self, small)} does not divide "
                    f"{large}={getattr(self, large)}"
                )

    def bytes(self, width: int, itemsize: int) -> int:
        """Returns bytes of VMEM of the larger kernel: its blocks twice (double buffering), and a block of scores."""
        scores = self.block_t * self.block_v
        first = self.chunk * width * itemsize + self.block_v * width * itemsize + scores * itemsize
        block_d = self.block_d(width)
        second = self.chunk * block_d * (itemsize + 4) + self.block_v * block_d * (itemsize + 8) + scores * itemsize
        return 2 * max(first, second) + scores * (8 + itemsize)

    def block_d(self, width: int) -> int:
        """Returns dimensions of the gradients in a grid step: the largest divisor of `width` up to `max_block_d`."""
        return next(size for size in range(min(self.max_block_d, width), 0, -LANES) if width % size == 0)

    def require(self, width: int, itemsize: int) -> None:
        """Raises BadInput if the tiles need more than `vmem_limit_bytes`."""
        if (needed := self.bytes(width, itemsize)) > self.vmem_limit_bytes:
            raise BadInput(
                f"vocab_cross_entropy tiles of {self.block_v} x {self.block_t} in chunks of {self.chunk} need "
                f"{needed / _MIB:.0f} MiB of VMEM at width {width}, more than {self.vmem_limit_bytes / _MIB:.0f}; "
                "make Tiles.chunk, block_v, block_t or max_block_d smaller"
            )


# By a part of the device kind, tuned with benchmarks/losses.py.
_TUNED = {"v5 lite": Tiles(), "v5e": Tiles(), "v6": Tiles(block_t=1024, block_v=1024)}
_TWO_CORES = Tiles(max_block_d=512)  # v4, v5p: two cores share the dimensions


def choose_tiles(count: int, width: int, itemsize: int, device_kind: str = "") -> Tiles:
    """Returns the best known tiles that fit.

    Args:
      count: number of positions; a small number does not fill a chunk.
      width: D, a multiple of 128.
      itemsize: bytes of an element of the hidden states.
      device_kind: as JAX names it; a v5p if empty.
    """
    tiles = next((tuned for part, tuned in _TUNED.items() if part in device_kind.lower()), _TWO_CORES)
    if tiles is _TWO_CORES:
        tiles = dataclasses.replace(tiles, max_block_d=max(LANES, min(1280, width // 2 // LANES * LANES)))
    tiles = dataclasses.replace(tiles, vmem_limit_bytes=platform.vmem_limit_bytes(device_kind))
    block_t = min(tiles.block_t, -(-max(count, 1) // LANES) * LANES)
    filled = -(-max(count, 1) // block_t) * block_t
    tiles = dataclasses.replace(tiles, block_t=block_t, chunk=min(tiles.chunk // block_t * block_t, filled))
    while tiles.bytes(width, itemsize) > tiles.vmem_limit_bytes:
        half_chunk, half_block_v = (size // 2 // LANES * LANES for size in (tiles.chunk, tiles.block_v))
        if tiles.chunk > tiles.block_t and half_chunk % tiles.block_t == 0:
            tiles = dataclasses.replace(tiles, chunk=half_chunk)
        elif tiles.block_v > tiles.block_v_max:
            tiles = dataclasses.replace(tiles, block_v=half_block_v)
        elif tiles.block_t > LANES:
            tiles = dataclasses.replace(tiles, block_t=LANES, chunk=LANES)
        else:
            break
    tiles.require(width, itemsize)
    return tiles
