"""Stage 3b: queries with mined hard negatives (arXiv 2602.11151, section 2.5)."""

import dataclasses
from typing import ClassVar

from pplx_jax.core.errors import require
from pplx_jax.data.batches.batch_spec import TripletBatch
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.models.embedding import take_slots
from pplx_jax.objectives.contrastive import triplet_loss
from pplx_jax.training.stages.contrastive import ContrastiveStage

_HASHES = ("query_hash", "document_hash", "negative_hash")


@dataclasses.dataclass(frozen=True)
class TripletStage(ContrastiveStage):
    """Compares each query with every document and every hard negative of the batch.

    Attributes in addition to those of `ContrastiveStage`:
      negatives: hard negatives used per query, the first of the mined ones.
      mask_duplicates: leave out duplicates (`duplicate_groups`), also among hard negatives; the paper has no mask.
    """

    negatives: int = 7
    mask_duplicates: bool = True
    temperature: float = 0.03

    name: ClassVar[str] = "triplet"
    starts_from: ClassVar[str | None] = "pair"
    summary: ClassVar[str] = "pairs with mined hard negatives"

    def __post_init__(self):
        super().__post_init__()
        require(self.negatives >= 1, self, "negatives", "1 or more")

    @property
    def batch(self):
        return TripletBatch(**self._shape(), negatives=self.negatives)

    def loss(self, model, batch, step):
        pooled, _ = self.embed(model, batch)
        embeddings = tanh_int8(pooled, self.rounding)
        return self.objective(triplet_loss, step)(
            take_slots(embeddings, batch["query"]),
            take_slots(embeddings, batch["document"]),
            take_slots(embeddings, batch["negatives"]),
            **{name: batch[name] for name in _HASHES if self.mask_duplicates},
            weight=batch.get("weight"),
            integers=True,
        )
