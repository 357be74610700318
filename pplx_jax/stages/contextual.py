"""Stage 3a: chunks that know their document (arXiv 2602.11151, section 2.4)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from pplx_jax.contrastive.losses import contextual_loss
from pplx_jax.contrastive.matryoshka import matryoshka
from pplx_jax.data.features import contextual_batch, rows_needed
from pplx_jax.models.encoding import embed, gather
from pplx_jax.models.quantization import Rounding, tanh_int8
from pplx_jax.schedules import cosine_ramp


@dataclasses.dataclass(frozen=True)
class ContextualStage:
    """Late chunking: a document's chunks are encoded in one pass and pooled one by one.

    Attributes:
      batch_size: documents a step, each with one of its queries.
      row_length: tokens a row, at least one document.
      slots: most chunks a row.
      chunks: C, most chunks a document.
      temperature: tau.
      margin: of L_global's false-negative mask.
      mask_duplicates: leave copies of a query's document (equal hash) out of L_batch as well; a document serves
        several queries, and two of them may meet in a batch.
      sequence_weight: share of L_seq within L_local.
      beta_start: weight of L_global at the first step.
      beta_end: and at the last, along half a cosine.
      rounding: of the INT8 quantization trained in.
      prefixes: MRL dims, the full width among them; empty for none.
    """

    batch_size: int
    row_length: int = 4096
    slots: int = 64
    chunks: int = 16
    temperature: float = 0.02
    margin: float = 0.1
    mask_duplicates: bool = True
    sequence_weight: float = 0.2
    beta_start: float = 0.2
    beta_end: float = 0.5
    rounding: Rounding = "half_even"
    prefixes: tuple[int, ...] = ()

    name: ClassVar[str] = "contextual"
    predicts_tokens: ClassVar[bool] = False

    def rows(self, table, multiple_of):
        return rows_needed(
            table, self.name, self.batch_size, self.row_length, slots=self.slots, multiple_of=multiple_of
        )

    def features(self, table, indices, rows):
        return contextual_batch(table, indices, rows=rows, length=self.row_length, slots=self.slots, chunks=self.chunks)

    def loss(self, model, batch, step):
        pooled, counts = embed(model, batch, self.slots)
        chunk_valid = batch["chunks"][..., 0] >= 0
        chunks = gather(pooled, batch["chunks"])
        # A document's vector is the mean over all its chunks' tokens, so chunks weigh by their length.
        tokens = jnp.where(chunk_valid, gather(counts, batch["chunks"]), 0.0)[..., None]
        document = jnp.sum(chunks * tokens, axis=1) / jnp.maximum(jnp.sum(tokens, axis=1), 1.0)
        beta = cosine_ramp(self.beta_start, self.beta_end, step.progress)

        def objective(query, chunks, document):
            return contextual_loss(
                query,
                chunks,
                chunk_valid,
                batch["chunk"],
                document,
                batch["document_hash"],
                beta=beta,
                temperature=self.temperature,
                sequence_weight=self.sequence_weight,
                margin=self.margin,
                mask_duplicates=self.mask_duplicates,
            )

        over_prefixes = matryoshka(objective, self.prefixes) if self.prefixes else objective
        return over_prefixes(
            tanh_int8(gather(pooled, batch["query"]), self.rounding),
            tanh_int8(chunks, self.rounding),
            tanh_int8(document, self.rounding),
        )
