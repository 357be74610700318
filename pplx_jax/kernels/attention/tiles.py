"""Sizes that the TPU kernels work in: what fits, and what is best on which device."""

import dataclasses

from pplx_jax.errors import BadInput

LANES = 128


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
      vmem_limit_bytes: what a kernel may take of the core's fast memory.

    Raises:
      BadInput: a size is no multiple of 128, or one does not divide the next.
    """

    query: int
    key: int
    piece: int
    sub_query: int = 256
    sub_key: int = 512
    vmem_limit_bytes: int = 64 * 2**20

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
