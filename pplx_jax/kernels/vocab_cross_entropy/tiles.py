"""Sizes that the TPU kernels work in: what fits, and what is best on which device."""

import dataclasses

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import platform

LANES = 128
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of the scores.

    Attributes:
      block: positions whose scores exist at a time; more of them add up the table's gradient less often.
      positions: of a tile; a tile without any masked one is left out.
      vocabulary: classes of a tile.
      piece: classes that share a maximum; pieces of a tile overlap, one's product with another's exponentials.
      width: most dimensions of the gradients made at once; on a chip of two cores each makes a half.
      vmem_limit_bytes: what a kernel may take of the core's fast memory.

    Raises:
      BadInput: a size is no multiple of 128, or one does not divide the next.
    """

    block: int = 2048
    positions: int = 512
    vocabulary: int = 512
    piece: int = 256
    width: int = 1280
    vmem_limit_bytes: int = platform.fast_memory("")

    def __post_init__(self):
        for name in ("block", "positions", "vocabulary", "piece", "width"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise BadInput(f"vocab_cross_entropy Tiles.{name}={size} is no multiple of {LANES}")
        for small, large in (("positions", "block"), ("piece", "vocabulary")):
            if getattr(self, large) % getattr(self, small):
                raise BadInput(
                    f"vocab_cross_entropy Tiles.{small}={getattr(self, small)} does not divide "
                    f"{large}={getattr(self, large)}"
                )

    def bytes(self, width: int, itemsize: int) -> int:
        """Fast memory of the larger kernel: its blocks twice, and a tile of scores."""
        scores = self.positions * self.vocabulary
        first = self.block * width * itemsize + self.vocabulary * width * itemsize + scores * itemsize
        part = self.part(width)
        second = self.block * part * (itemsize + 4) + self.vocabulary * part * (itemsize + 8) + scores * itemsize
        return 2 * max(first, second) + scores * (8 + itemsize)

    def part(self, width: int) -> int:
        """Dimensions that the gradients are made in at once: the largest divisor of `width` within bounds."""
        return next(size for size in range(min(self.width, width), 0, -LANES) if width % size == 0)

    def require(self, width: int, itemsize: int) -> None:
        """Raises BadInput where the tiles need more than `vmem_limit_bytes`."""
        if (needed := self.bytes(width, itemsize)) > self.vmem_limit_bytes:
            raise BadInput(
                f"vocab_cross_entropy tiles of {self.vocabulary} x {self.positions} in blocks of {self.block} need "
                f"{needed / _MIB:.0f} MiB of fast memory at width {width}, over {self.vmem_limit_bytes / _MIB:.0f}; "
                "make Tiles.block, vocabulary, positions or width smaller"
            )


# By a part of the device's kind; figures of benchmarks/losses.py.
_BEST = {"v5 lite": Tiles(), "v5e": Tiles(), "v6": Tiles(positions=1024, vocabulary=1024)}
_ELSEWHERE = Tiles(width=512)  # v4, v5p: two cores share the width


def best(count: int, width: int, itemsize: int, device_kind: str = "") -> Tiles:
    """The best tiles known that fit.

    Args:
      count: positions at hand; few of them do not fill a block.
      width: D, a multiple of 128.
      itemsize: bytes of a hidden state's entry.
      device_kind: as JAX names it; as of a v5p where empty.
    """
    tiles = next((best for part, best in _BEST.items() if part in device_kind.lower()), _ELSEWHERE)
    shared = tiles is _ELSEWHERE
    tiles = dataclasses.replace(tiles, vmem_limit_bytes=platform.fast_memory(device_kind))
    if shared:
        tiles = dataclasses.replace(tiles, width=max(LANES, min(1280, width // 2 // LANES * LANES)))
    positions = min(tiles.positions, -(-max(count, 1) // LANES) * LANES)
    filled = -(-max(count, 1) // positions) * positions
    tiles = dataclasses.replace(tiles, positions=positions, block=min(tiles.block // positions * positions, filled))
    while tiles.bytes(width, itemsize) > tiles.vmem_limit_bytes:
        smaller = {name: getattr(tiles, name) // 2 // LANES * LANES for name in ("block", "positions", "vocabulary")}
        if tiles.block > tiles.positions and smaller["block"] % tiles.positions == 0:
            tiles = dataclasses.replace(tiles, block=smaller["block"])
        elif tiles.vocabulary > tiles.piece:
            tiles = dataclasses.replace(tiles, vocabulary=smaller["vocabulary"])
        elif tiles.positions > LANES:
            tiles = dataclasses.replace(tiles, positions=LANES, block=LANES)
        else:
            break
    tiles.require(width, itemsize)
    return tiles
