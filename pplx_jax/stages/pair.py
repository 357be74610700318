"""Stage 2: pairs of a query and its document (arXiv 2602.11151, section 2.3)."""

import dataclasses
from typing import ClassVar

from pplx_jax.contrastive.losses import pair_loss
from pplx_jax.contrastive.matryoshka import matryoshka
from pplx_jax.data.features import pair_batch, rows_needed
from pplx_jax.models.encoding import embed, gather
from pplx_jax.models.quantization import Rounding, tanh_int8


@dataclasses.dataclass(frozen=True)
class PairStage:
    """In-batch negatives, queries among them, with the false-negative mask.

    Attributes:
      batch_size: pairs a step, all of them candidates for every query.
      row_length: tokens a row; a longer text is cut.
      slots: most texts a row.
      temperature: tau.
      margin: of the false-negative mask.
      mask_duplicates: leave out copies of the positive document (equal hash) as well.
      rounding: of the INT8 quantization trained in.
      prefixes: MRL dims, the full width among them; empty for none (the default in this stage).
    """

    batch_size: int
    row_length: int = 512
    slots: int = 32
    temperature: float = 0.02
    margin: float = 0.1
    mask_duplicates: bool = True
    rounding: Rounding = "half_even"
    prefixes: tuple[int, ...] = ()

    name: ClassVar[str] = "pair"
    predicts_tokens: ClassVar[bool] = False

    def rows(self, table, multiple_of):
        return rows_needed(
            table, self.name, self.batch_size, self.row_length, slots=self.slots, multiple_of=multiple_of
        )

    def features(self, table, indices, rows):
        return pair_batch(table, indices, rows=rows, length=self.row_length, slots=self.slots)

    def loss(self, model, batch, step):
        pooled, _ = embed(model, batch, self.slots)
        embeddings = tanh_int8(pooled, self.rounding)
        objective = matryoshka(pair_loss, self.prefixes) if self.prefixes else pair_loss
        return objective(
            gather(embeddings, batch["query"]),
            gather(embeddings, batch["document"]),
            temperature=self.temperature,
            margin=self.margin,
            document_hash=batch["document_hash"] if self.mask_duplicates else None,
        )
