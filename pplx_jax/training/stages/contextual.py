"""Stage 3a: chunks in the context of their document (arXiv 2602.11151, section 2.4)."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from pplx_jax.core.errors import require
from pplx_jax.data.batches.batch_spec import ContextualBatch
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.models.embedding import take_slots
from pplx_jax.objectives.contextual import contextual_loss
from pplx_jax.training.schedules import cosine_ramp
from pplx_jax.training.stages.contrastive import ContrastiveStage


@dataclasses.dataclass(frozen=True)
class ContextualStage(ContrastiveStage):
    """Late chunking: a document's chunks are encoded in one pass and pooled separately.

    An example is a document with one of its queries; a sequence holds at least one document, a slot one chunk or query.

    Attributes in addition to those of `ContrastiveStage`:
      chunks: C, most chunks of a document.
      margin: of L_global's false-negative mask.
      mask_duplicates: leave duplicates (`duplicate_groups`) out of L_batch as well: a document has several queries, and
        a batch may hold two of them. Other chunks of the document that answer the query are left out of L_seq and
        L_batch, too.
      sequence_weight: share of L_seq within L_local.
      beta_start: weight of L_global at the first step.
      beta_end: weight of L_global at the last step; it changes along half a cosine.
    """

    row_length: int = 4224  # 16 chunks of 256 tokens, and separators
    slots: int = 64
    chunks: int = 16
    margin: float = 0.1
    mask_duplicates: bool = True
    sequence_weight: float = 0.2
    beta_start: float = 0.2
    beta_end: float = 0.5

    name: ClassVar[str] = "contextual"
    starts_from: ClassVar[str | None] = "pair"
    summary: ClassVar[str] = "chunks in their documents"
    model_kind: ClassVar[Literal["v1", "context_v1"]] = "context_v1"

    def __post_init__(self):
        super().__post_init__()
        require(self.chunks >= 1, self, "chunks", "1 or more")
        for name in ("sequence_weight", "beta_start", "beta_end"):
            require(0 <= getattr(self, name) <= 1, self, name, "a number from 0 to 1")

    @property
    def batch(self):
        return ContextualBatch(**self._shape(), chunks=self.chunks)

    def loss(self, model, batch, step):
        pooled, counts = self.embed(model, batch)
        chunk_valid = batch["chunks"][..., 0] >= 0
        chunks = take_slots(pooled, batch["chunks"])
        # A document's vector is the mean over all its chunks' tokens, so each chunk is weighted by its length.
        tokens = jnp.where(chunk_valid, take_slots(counts, batch["chunks"]), 0.0)[..., None]
        document = jnp.sum(chunks * tokens, axis=1) / jnp.maximum(jnp.sum(tokens, axis=1), 1.0)
        beta = cosine_ramp(self.beta_start, self.beta_end, step.progress)

        def loss(query, chunks, document, *, temperature):
            return contextual_loss(
                query,
                chunks,
                chunk_valid,
                batch["chunk"],
                document,
                batch["document_hash"],
                beta=beta,
                temperature=temperature,
                sequence_weight=self.sequence_weight,
                margin=self.margin,
                mask_duplicates=self.mask_duplicates,
                query_hash=batch["query_hash"] if self.mask_duplicates else None,
                also_positive=batch["also_positive"],
                weight=batch.get("weight"),
                integers=True,
            )

        return self.objective(loss, step)(
            tanh_int8(take_slots(pooled, batch["query"]), self.rounding),
            tanh_int8(chunks, self.rounding),
            tanh_int8(document, self.rounding),
        )
