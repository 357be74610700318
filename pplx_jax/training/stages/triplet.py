"""Stage 3b: queries with hard negatives (arXiv 2602.11151, section 2.5), also with a teacher's scores of them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax

from pplx_jax.core.errors import require
from pplx_jax.data.batches.batch_spec import TripletBatch
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.models.embedding import take_slots
from pplx_jax.objectives.contrastive import triplet_loss
from pplx_jax.objectives.distillation import Teacher, distillation_loss
from pplx_jax.training.stages.contrastive import ContrastiveStage

_HASHES = ("query_hash", "document_hash", "negative_hash")


@dataclasses.dataclass(frozen=True)
class TripletStage(ContrastiveStage):
    """Compares each query with every document and every hard negative of the batch.

    Attributes in addition to those of `ContrastiveStage`:
      negatives: hard negatives used per query, the first of the mined ones.
      mask_duplicates: leave out duplicates (`duplicate_groups`), also among hard negatives; the paper has no mask.
      teacher: "margin_mse" or "kl" trains on the teacher scores of the triplets (`distillation_loss`) instead of the
        contrastive loss; "" reads no scores.
      teacher_temperature: the teacher's scores are divided by it. The student's score is the cosine over `temperature`.
      contrastive_weight: with a teacher, the weight of the contrastive loss that is added to that of the teacher, of
        weight 1.
    """

    negatives: int = 7
    mask_duplicates: bool = True
    temperature: float = 0.03
    teacher: Literal["", "margin_mse", "kl"] = ""
    teacher_temperature: float = 1.0
    contrastive_weight: float = 0.0

    name: ClassVar[str] = "triplet"
    starts_from: ClassVar[str | None] = "pair"
    summary: ClassVar[str] = "pairs with mined hard negatives"

    def __post_init__(self):
        super().__post_init__()
        require(self.negatives >= 1, self, "negatives", "1 or more")
        require(self.teacher in ("", "margin_mse", "kl"), self, "teacher", "'margin_mse', 'kl' or '' for none")
        require(0 < self.teacher_temperature < math.inf, self, "teacher_temperature", "a number above 0")
        require(0 <= self.contrastive_weight < math.inf, self, "contrastive_weight", "0 or more")

    @property
    def batch(self):
        return TripletBatch(**self._shape(), negatives=self.negatives, scores=bool(self.teacher))

    def loss(self, model, batch, step):
        pooled, _ = self.embed(model, batch)
        embeddings = tanh_int8(pooled, self.rounding)
        hashes = {name: batch[name] for name in _HASHES if self.mask_duplicates}
        contrastive = functools.partial(triplet_loss, **hashes, weight=batch.get("weight"), integers=True)
        loss = self._taught(self.teacher, batch, contrastive) if self.teacher else contrastive
        return self.objective(loss, step)(
            *(take_slots(embeddings, batch[name]) for name in ("query", "document", "negatives"))
        )

    def _taught(self, teacher: Teacher, batch: dict[str, jax.Array], contrastive: Callable) -> Callable:
        """Returns the loss of the teacher, with the contrastive loss added if it has a weight."""

        def taught(*embeddings, temperature):
            loss, metrics = distillation_loss(
                *embeddings,
                scores=batch["scores"],
                teacher=teacher,
                temperature=temperature,
                teacher_temperature=self.teacher_temperature,
                weight=batch.get("weight"),
            )
            if not self.contrastive_weight:
                return loss, metrics
            other, more = contrastive(*embeddings, temperature=temperature)
            metrics |= {"distillation": loss, "contrastive": other, "duplicates": more["duplicates"]}
            return loss + self.contrastive_weight * other, metrics

        return taught
