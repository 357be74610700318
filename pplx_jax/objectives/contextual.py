"""The contextual loss (arXiv 2602.11151, section 2.4), for chunks that are encoded together with their document.

Conventions are those of `contrastive`: cosines of quantized embeddings, weighted means over queries, duplicates.
"""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp import ABSENT, masked_logsumexp
from pplx_jax.objectives.contrastive import (
    Metrics,
    compact,
    example_groups,
    mean_over_queries,
    pair_loss,
)
from pplx_jax.objectives.similarity import normalize


def sequence_loss(
    query: jax.Array,
    chunks: jax.Array,
    chunk_valid: jax.Array,
    chunk: jax.Array,
    *,
    temperature: jax.Array | float = 0.02,
    also_positive: jax.Array | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """L_seq: InfoNCE of each query over the chunks of its own document, without a false-negative mask.

    Args:
      query: [N, D].
      chunks: [N, C, D], the chunks of query i's document.
      chunk_valid: [N, C] bool; other chunks are masked.
      chunk: [N], index of the chunk that answers query i.
      temperature: tau.
      also_positive: [N, C] bool; if given, more chunks that answer query i, or copies of one that does; they are
        masked.
      weight: [N], weight of each query in the mean.

    Returns:
      The mean over queries, float32.
    """
    logits = _own_document_logits(normalize(query), normalize(chunks), chunk_valid, also_positive, temperature)
    per_query = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(chunk.shape[0]), chunk]
    return mean_over_queries(per_query, weight=weight)


def batch_loss(
    query: jax.Array,
    chunks: jax.Array,
    chunk_valid: jax.Array,
    chunk: jax.Array,
    *,
    temperature: jax.Array | float = 0.02,
    document_hash: jax.Array | None = None,
    query_hash: jax.Array | None = None,
    also_positive: jax.Array | None = None,
    weight: jax.Array | None = None,
    integers: bool = False,
) -> jax.Array:
    """L_batch: InfoNCE of each query over all chunks of all documents of the batch, its own included.

    Args:
      query, chunks, chunk_valid, chunk, temperature, also_positive, weight: as for `sequence_loss`.
      document_hash: [N]; if given, another query's copy of the same document is masked, because its gold chunk would be
        a negative equal to the positive.
      query_hash: [N]; if given, the documents of an example's duplicates are masked.
      integers: as for `pair_loss`.

    Returns:
      The mean over queries, float32.
    """
    count, chunks_per_document = chunk_valid.shape
    sent = compact(chunks.reshape(count * chunks_per_document, -1), integers)
    query, chunks = normalize(query), normalize(chunks)
    example = jnp.arange(count)
    group = example_groups(query_hash, document_hash, count)
    other_documents = masked_logsumexp(
        query,
        chunks.reshape(count * chunks_per_document, -1),
        group,
        jnp.repeat(group, chunks_per_document),
        temperature=temperature,
        candidate_valid=chunk_valid.reshape(-1),
        compact=sent,
    )
    own_logits = _own_document_logits(query, chunks, chunk_valid, also_positive, temperature)
    total = jnp.logaddexp(jax.nn.logsumexp(own_logits, axis=-1), other_documents.logsumexp)
    return mean_over_queries(total - own_logits[example, chunk], weight=weight)


def _own_document_logits(
    query: jax.Array,
    chunks: jax.Array,
    chunk_valid: jax.Array,
    also_positive: jax.Array | None,
    temperature: jax.Array | float,
) -> jax.Array:
    """[N, C] logits of each query with the chunks of its own document, for normalized vectors; ABSENT if masked."""
    unmasked = chunk_valid if also_positive is None else chunk_valid & ~also_positive
    cosines = jnp.einsum("nd,ncd->nc", query, chunks, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(unmasked, cosines / temperature, ABSENT)


def contextual_loss(
    query: jax.Array,
    chunks: jax.Array,
    chunk_valid: jax.Array,
    chunk: jax.Array,
    document: jax.Array,
    document_hash: jax.Array,
    *,
    beta: jax.Array | float,
    temperature: jax.Array | float = 0.02,
    sequence_weight: float = 0.2,
    margin: float = 0.1,
    mask_duplicates: bool = False,
    query_hash: jax.Array | None = None,
    also_positive: jax.Array | None = None,
    weight: jax.Array | None = None,
    integers: bool = False,
) -> tuple[jax.Array, Metrics]:
    """beta L_global + (1 - beta) (0.2 L_seq + 0.8 L_batch), arXiv 2602.11151 section 2.4.

    L_global is `pair_loss` on document embeddings, with copies of the same document masked.

    Args:
      query: [N, D].
      chunks: [N, C, D], contextual embeddings of the chunks of query i's document.
      chunk_valid: [N, C] bool.
      chunk: [N], index of the gold chunk.
      document: [N, D], the embedding of query i's whole document.
      document_hash: [N]; equal for copies of a document.
      beta: weight of L_global at this step.
      temperature: tau of all three losses.
      sequence_weight: weight of L_seq within L_local.
      margin: false-negative margin of L_global.
      mask_duplicates: mask duplicates in L_local too, where the paper has no mask: copies of the query's document, and
        those known from `query_hash` and `also_positive`.
      query_hash: [N]; if given, an example's duplicates are masked in L_global and, with `mask_duplicates`, in L_batch.
      also_positive: [N, C] bool, as for `sequence_loss`; used with `mask_duplicates`.
      weight: [N], weight of each query in the means.
      integers: as for `pair_loss`.

    Returns:
      The loss and metrics: those of `pair_loss`, `loss_sequence`, `loss_batch`, `loss_global`, `beta` and, with
      `also_positive`, `duplicate_chunks` (masked chunks of the query's own document).
    """
    also_positive = also_positive if mask_duplicates else None
    loss_sequence = sequence_loss(
        query, chunks, chunk_valid, chunk, temperature=temperature, also_positive=also_positive, weight=weight
    )
    loss_batch = batch_loss(
        query,
        chunks,
        chunk_valid,
        chunk,
        temperature=temperature,
        document_hash=document_hash if mask_duplicates else None,
        query_hash=query_hash if mask_duplicates else None,
        also_positive=also_positive,
        weight=weight,
        integers=integers,
    )
    loss_global, metrics = pair_loss(
        query,
        document,
        temperature=temperature,
        margin=margin,
        document_hash=document_hash,
        query_hash=query_hash,
        weight=weight,
        integers=integers,
    )
    local = sequence_weight * loss_sequence + (1 - sequence_weight) * loss_batch
    metrics |= {
        "loss_sequence": loss_sequence,
        "loss_batch": loss_batch,
        "loss_global": loss_global,
        "beta": jnp.asarray(beta, jnp.float32),
    }
    if also_positive is not None:
        metrics["duplicate_chunks"] = jnp.mean(jnp.sum(also_positive, axis=1).astype(jnp.float32))
    return beta * loss_global + (1 - beta) * local, metrics
