"""Token limits of the texts of a recipe."""

import dataclasses

from pplx_jax.core.errors import require


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Token limits of a recipe's texts; longer ones go on in the next row (text) or are cut (the others), and counted.

    Attributes:
      text: rows of the diffusion stage, filled with texts end to end.
      query: of the contrastive stages.
      document: of the pair and triplet stages.
      chunk: of the contextual stage.
      chunks: most chunks of a document.
    """

    text: int
    query: int
    document: int
    chunk: int
    chunks: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) >= 1, self, field.name, "1 or more")
