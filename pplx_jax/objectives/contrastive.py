"""The contrastive objectives (arXiv 2602.11151, sections 2.3 to 2.5), on embeddings of the global batch.

All take quantized embeddings and compare them by cosine; scale is one over temperature. Losses are means over the
queries of the batch and come with metrics. Where the queries have a `weight` [N], of 0 or more, the mean is weighted: a
weight of 2 counts as two such queries, one of 0 as none. Weights touch neither the negatives nor the metrics.

Where hashes of queries and documents are given, an example's duplicates (`duplicate_groups`) are none of its
negatives, and are counted.
"""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp import ABSENT, BLOCK, Sum, masked_logsumexp
from pplx_jax.objectives.duplicates import duplicate_groups, group_of_documents, group_sizes
from pplx_jax.objectives.similarity import normalize

Metrics = dict[str, jax.Array]


_SCORES = 2**22  # cosines of a device that exist at a time, whatever the batch


def _sum_over_candidates(query: jax.Array, *arguments: jax.Array, **masks) -> Sum:
    """`masked_logsumexp` in blocks of candidates that shrink as the queries grow, so that its memory does not."""
    return masked_logsumexp(query, *arguments, **masks, block=max(128, min(BLOCK, _SCORES // query.shape[0])))


def _mean_over_queries(
    per_query: jax.Array, valid: jax.Array | None = None, weight: jax.Array | None = None
) -> jax.Array:
    if valid is None and weight is None:
        return jnp.mean(per_query)
    share = jnp.ones_like(per_query) if weight is None else weight
    share = share if valid is None else jnp.where(valid, share, 0.0)
    total = jnp.sum(share)
    # Zero weights give a loss of 0, not of 0 / 0.
    return jnp.sum(jnp.where(share > 0, per_query, 0.0) * share) / jnp.where(total > 0, total, 1.0)


def _groups(query_hash: jax.Array | None, document_hash: jax.Array | None, count: int) -> jax.Array:
    """[N] int32: examples of one group are duplicates; by what is given, each its own where nothing is."""
    example = jnp.arange(count, dtype=jnp.int32)
    if query_hash is None and document_hash is None:
        return example
    return duplicate_groups(
        example if query_hash is None else query_hash, example if document_hash is None else document_hash
    )


def pair_loss(
    query: jax.Array,
    document: jax.Array,
    *,
    temperature: jax.Array | float = 0.02,
    margin: float = 0.1,
    document_hash: jax.Array | None = None,
    query_hash: jax.Array | None = None,
    valid: jax.Array | None = None,
    weight: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE of each query against all other documents *and queries*, with probable false negatives left out.

    L_i = -log e^(s(q_i,d_i)/tau) / (e^(s(q_i,d_i)/tau) + sum_{j!=i} m_i(d_j) e^(s(q_i,d_j)/tau)
                                                        + sum_{j!=i} m_i(q_j) e^(s(q_i,q_j)/tau))
    with m_i(x) = 1 if s(q_i, x) <= s(q_i, d_i) + margin, else 0. There is no document-document and no
    document-to-query term. The comparison carries no gradient.

    Args:
      query: [N, D].
      document: [N, D]; row i is the positive of query i.
      temperature: tau.
      margin: how far a negative may score above the positive before it counts as a false negative.
      document_hash: [N]; where given, copies of a query's own document (equal hash) are left out.
      query_hash: [N]; where given, all duplicates of an example are, its query's copies and their documents too.
      valid: [N] bool; where given, other examples neither have a loss nor serve as negatives.
      weight: [N], of each query in the mean.

    Returns:
      The loss and metrics: `accuracy` (positive above every negative), `positive_similarity`,
      `masked_negatives` (share of the 2 (N - 1) candidates that were left out), `duplicates` and `false_negatives`
      (how many of a query's candidates were left out as such).

    Example:
      `loss, metrics = pair_loss(tanh_int8(q), tanh_int8(d), temperature=0.02)`
    """
    count = query.shape[0]
    query, document = normalize(query), normalize(document)
    positive = jnp.sum(query * document, axis=-1)
    example = jnp.arange(count)
    mask = {
        "temperature": temperature,
        "ceiling": jax.lax.stop_gradient(positive) + margin,
        "candidate_valid": valid,
    }
    # A query's own document and itself are of its group: never candidates.
    of_documents = _groups(query_hash, document_hash, count)
    of_queries = example if query_hash is None else of_documents
    documents = _sum_over_candidates(query, document, of_documents, of_documents, **mask)
    queries = _sum_over_candidates(query, query, of_queries, of_queries, **mask)

    logit = positive / temperature
    others = jnp.logaddexp(documents.logsumexp, queries.logsumexp)
    per_query = jnp.logaddexp(logit, others) - logit
    hardest = jnp.maximum(documents.hardest, queries.hardest)
    masked = 2 * count - 2 - documents.used - queries.used
    duplicates = group_sizes(of_documents) + group_sizes(of_queries) - 2
    metrics = {
        "accuracy": _mean_over_queries((positive > hardest).astype(jnp.float32), valid),
        "positive_similarity": _mean_over_queries(positive, valid),
        "masked_negatives": _mean_over_queries(masked / max(2 * count - 2, 1), valid),
        "duplicates": _mean_over_queries(duplicates.astype(jnp.float32), valid),
        "false_negatives": _mean_over_queries((masked - duplicates).astype(jnp.float32), valid),
    }
    return _mean_over_queries(per_query, valid, weight), metrics


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
    """L_seq: the query's chunk against the other chunks of its own document. No false-negative mask.

    Args:
      query: [N, D].
      chunks: [N, C, D]; row i holds the chunks of query i's document.
      chunk_valid: [N, C] bool; absent chunks take no part.
      chunk: [N]; which chunk of its document answers query i.
      temperature: tau.
      also_positive: [N, C] bool; where given, further chunks that answer query i, or are copies of one that does: they
        take no part.
      weight: [N], of each query in the mean.

    Returns:
      The mean over queries, float32.
    """
    logits = _in_own_document(normalize(query), normalize(chunks), chunk_valid, also_positive, temperature)
    per_query = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(chunk.shape[0]), chunk]
    return _mean_over_queries(per_query, weight=weight)


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
) -> jax.Array:
    """L_batch: the query's chunk against all chunks of all documents of the batch, its own included.

    Arguments as `sequence_loss`, and:
      document_hash: [N]; where given, another query's copy of the same document takes no part: its gold chunk would
        be a negative equal to the positive.
      query_hash: [N]; where given, no document of an example's duplicates does.
    """
    count, places = chunk_valid.shape
    query, chunks = normalize(query), normalize(chunks)
    example = jnp.arange(count)
    group = _groups(query_hash, document_hash, count)
    elsewhere = _sum_over_candidates(
        query,
        chunks.reshape(count * places, -1),
        group,
        jnp.repeat(group, places),
        temperature=temperature,
        candidate_valid=chunk_valid.reshape(-1),
    )
    here = _in_own_document(query, chunks, chunk_valid, also_positive, temperature)
    total = jnp.logaddexp(jax.nn.logsumexp(here, axis=-1), elsewhere.logsumexp)
    return _mean_over_queries(total - here[example, chunk], weight=weight)


def _in_own_document(
    query: jax.Array,
    chunks: jax.Array,
    chunk_valid: jax.Array,
    also_positive: jax.Array | None,
    temperature: jax.Array | float,
) -> jax.Array:
    """[N, C] logits of normalised [N, D] and [N, C, D]: each query with its own document's chunks that take part."""
    taking_part = chunk_valid if also_positive is None else chunk_valid & ~also_positive
    cosines = jnp.einsum("nd,ncd->nc", query, chunks, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(taking_part, cosines / temperature, ABSENT)


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
) -> tuple[jax.Array, Metrics]:
    """beta L_global + (1 - beta) (0.2 L_seq + 0.8 L_batch), arXiv 2602.11151 section 2.4.

    L_global is `pair_loss` on document embeddings, with copies of the same document left out.

    Args:
      query: [N, D].
      chunks: [N, C, D], chunk embeddings of query i's document, contextualised by it.
      chunk_valid: [N, C] bool.
      chunk: [N], the gold chunk.
      document: [N, D], the embedding of query i's document as a whole.
      document_hash: [N]; equal for copies of a document.
      beta: weight of L_global at this step.
      temperature: tau of all three.
      sequence_weight: share of L_seq within L_local.
      margin: of L_global's false-negative mask.
      mask_duplicates: leave duplicates out of L_local too, where the paper has no mask: copies of the query's document
        and what `query_hash` and `also_positive` tell.
      query_hash: [N]; where given, an example's duplicates are left out of L_global and, with `mask_duplicates`, of
        L_batch.
      also_positive: [N, C] bool, as of `sequence_loss`; with `mask_duplicates`.
      weight: [N], of each query in the means.

    Returns:
      The loss and metrics: those of `pair_loss`, `loss_sequence`, `loss_batch`, `loss_global`, `beta` and, where
      `also_positive` is given, `duplicate_chunks` (how many of a query's own document are left out).
    """
    also_positive = also_positive if mask_duplicates else None
    in_document = sequence_loss(
        query, chunks, chunk_valid, chunk, temperature=temperature, also_positive=also_positive, weight=weight
    )
    in_batch = batch_loss(
        query,
        chunks,
        chunk_valid,
        chunk,
        temperature=temperature,
        document_hash=document_hash if mask_duplicates else None,
        query_hash=query_hash if mask_duplicates else None,
        also_positive=also_positive,
        weight=weight,
    )
    over_documents, metrics = pair_loss(
        query,
        document,
        temperature=temperature,
        margin=margin,
        document_hash=document_hash,
        query_hash=query_hash,
        weight=weight,
    )
    local = sequence_weight * in_document + (1 - sequence_weight) * in_batch
    metrics |= {
        "loss_sequence": in_document,
        "loss_batch": in_batch,
        "loss_global": over_documents,
        "beta": jnp.asarray(beta, jnp.float32),
    }
    if also_positive is not None:
        metrics["duplicate_chunks"] = jnp.mean(jnp.sum(also_positive, axis=1).astype(jnp.float32))
    return beta * over_documents + (1 - beta) * local, metrics


def triplet_loss(
    query: jax.Array,
    document: jax.Array,
    negatives: jax.Array,
    *,
    temperature: jax.Array | float = 0.03,
    document_hash: jax.Array | None = None,
    query_hash: jax.Array | None = None,
    negative_hash: jax.Array | None = None,
    weight: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The positive against every document and every hard negative of the batch (arXiv 2602.11151, section 2.5).

    No false-negative mask, no query-query term: the data of this stage is small and trusted.

    Args:
      query: [N, D].
      document: [N, D]; row i is the positive of query i.
      negatives: [N, K, D]; those mined for query i, which serve every query of the batch.
      temperature: tau.
      document_hash, query_hash: [N]; where given, documents of an example's duplicates are left out.
      negative_hash: [N, K], beside `document_hash`; where given, so are hard negatives, of whatever query, that are
        copies of such documents.
      weight: [N], of each query in the mean.

    Returns:
      The loss and metrics: `accuracy`, `positive_similarity`, `duplicates` (how many of a query's candidates were left
      out as such).
    """
    count, width = query.shape
    query, document, negatives = normalize(query), normalize(document), normalize(negatives)
    positive = jnp.sum(query * document, axis=-1)
    candidates = jnp.concatenate([document, negatives.reshape(-1, width)])
    group = _groups(query_hash, document_hash, count)
    of_negatives = jnp.full(candidates.shape[0] - count, -1, jnp.int32)
    if document_hash is not None and negative_hash is not None:
        of_negatives = group_of_documents(group, document_hash, negative_hash.reshape(-1))
    others = _sum_over_candidates(
        query, candidates, group, jnp.concatenate([group, of_negatives]), temperature=temperature
    )
    metrics = {
        "accuracy": jnp.mean(positive > others.hardest),
        "positive_similarity": jnp.mean(positive),
        "duplicates": jnp.mean((candidates.shape[0] - 1 - others.used).astype(jnp.float32)),
    }
    logit = positive / temperature
    return _mean_over_queries(jnp.logaddexp(logit, others.logsumexp) - logit, weight=weight), metrics
