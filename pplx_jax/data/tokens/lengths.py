"""Token limits of the texts of a recipe."""

import dataclasses

from pplx_jax.core.errors import require


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Token limits of a recipe. A longer raw text continues in the next row; other texts are cut and counted.

    Attributes:
      text: tokens of a row of raw text, which is filled with texts end to end.
      query: tokens of a query.
      document: tokens of a document of a pair or triplet.
      chunk: tokens of a chunk of a contextual document.
      chunks: maximum number of chunks of a contextual document.
    """

    text: int
    query: int
    document: int
    chunk: int
    chunks: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) >= 1, self, field.name, "1 or more")
