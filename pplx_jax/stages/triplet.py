"""Stage 3b: queries with mined hard negatives (arXiv 2602.11151, section 2.5)."""

import dataclasses
from typing import ClassVar

from pplx_jax.contrastive.losses import triplet_loss
from pplx_jax.contrastive.matryoshka import matryoshka
from pplx_jax.data.features import rows_needed, triplet_batch
from pplx_jax.models.encoding import embed, gather
from pplx_jax.models.quantization import Rounding, tanh_int8


@dataclasses.dataclass(frozen=True)
class TripletStage:
    """Every document and every hard negative of the batch against each query.

    Attributes:
      batch_size: queries a step.
      row_length: tokens a row; a longer text is cut.
      slots: most texts a row.
      negatives: hard negatives of a query that are used, the first of those mined.
      temperature: tau.
      rounding: of the INT8 quantization trained in.
      prefixes: MRL dims, the full width among them; empty for none.
    """

    batch_size: int
    row_length: int = 512
    slots: int = 32
    negatives: int = 7
    temperature: float = 0.03
    rounding: Rounding = "half_even"
    prefixes: tuple[int, ...] = ()

    name: ClassVar[str] = "triplet"
    predicts_tokens: ClassVar[bool] = False

    def rows(self, table, multiple_of):
        return rows_needed(
            table,
            self.name,
            self.batch_size,
            self.row_length,
            slots=self.slots,
            negatives=self.negatives,
            multiple_of=multiple_of,
        )

    def features(self, table, indices, rows):
        return triplet_batch(
            table, indices, rows=rows, length=self.row_length, slots=self.slots, negatives=self.negatives
        )

    def loss(self, model, batch, step):
        pooled, _ = embed(model, batch, self.slots)
        embeddings = tanh_int8(pooled, self.rounding)
        objective = matryoshka(triplet_loss, self.prefixes) if self.prefixes else triplet_loss
        return objective(
            gather(embeddings, batch["query"]),
            gather(embeddings, batch["document"]),
            gather(embeddings, batch["negatives"]),
            temperature=self.temperature,
        )
