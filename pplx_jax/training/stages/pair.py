"""Stage 2: pairs of a query and its document (arXiv 2602.11151, section 2.3)."""

import dataclasses
from typing import ClassVar

from pplx_jax.data.batches.batch_spec import PairBatch
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.models.embedding import take_slots
from pplx_jax.objectives.contrastive import pair_loss
from pplx_jax.training.stages.contrastive import ContrastiveStage


@dataclasses.dataclass(frozen=True)
class PairStage(ContrastiveStage):
    """In-batch negatives, including queries, with the false-negative mask.

    Attributes in addition to those of `ContrastiveStage`:
      margin: of the false-negative mask.
      mask_duplicates: leave out duplicates as well: copies of the positive document and of the query, and the texts
        paired with them (`duplicate_groups`).
      query_negatives: whether the other queries of the batch are negatives, too, as in the paper.
    """

    margin: float = 0.1
    mask_duplicates: bool = True
    query_negatives: bool = True

    name: ClassVar[str] = "pair"
    starts_from: ClassVar[str | None] = "diffusion"
    summary: ClassVar[str] = "pairs, in-batch negatives"

    @property
    def batch(self):
        return PairBatch(**self._shape())

    def loss(self, model, batch, step):
        pooled, _ = self.embed(model, batch)
        embeddings = tanh_int8(pooled, self.rounding)
        return self.objective(pair_loss, step)(
            take_slots(embeddings, batch["query"]),
            take_slots(embeddings, batch["document"]),
            margin=self.margin,
            document_hash=batch["document_hash"] if self.mask_duplicates else None,
            query_hash=batch["query_hash"] if self.mask_duplicates else None,
            weight=batch.get("weight"),
            integers=True,
            query_negatives=self.query_negatives,
        )
