"""The pair and the triplet loss (arXiv 2602.11151, sections 2.3 and 2.5), on embeddings of the global batch.

All contrastive losses compare quantized embeddings by their cosine; scale is one over temperature. A loss is the mean
over the queries of the batch, and comes with metrics. A `weight` [N], 0 or more, makes it a weighted mean: a query with
weight 2 counts as two queries, one with weight 0 does not count. Weights change neither the negatives nor the metrics.

With hashes of queries and documents, the duplicates of an example (`duplicate_groups`) are not among its negatives, and
are counted.
"""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp import masked_logsumexp
from pplx_jax.objectives.duplicates import duplicate_groups, group_of_documents, group_sizes
from pplx_jax.objectives.similarity import inverse_norm, normalize

Metrics = dict[str, jax.Array]


def compact(vectors: jax.Array, integers: bool) -> tuple[jax.Array, jax.Array] | None:
    """Returns vectors [M, D] as `masked_logsumexp` exchanges them, as INT8 with a factor, if they are integers."""
    if not integers:
        return None
    # Rounded, because a cast truncates: a compiler may leave a rounding error in the straight-through estimator's sum.
    whole = jnp.round(vectors)
    return whole.astype(jnp.int8), inverse_norm(whole)[:, 0]


def mean_over_queries(
    per_query: jax.Array, valid: jax.Array | None = None, weight: jax.Array | None = None
) -> jax.Array:
    """The mean of `per_query` [N] over the valid queries, weighted by `weight`."""
    if valid is None and weight is None:
        return jnp.mean(per_query)
    share = jnp.ones_like(per_query) if weight is None else weight
    share = share if valid is None else jnp.where(valid, share, 0.0)
    total = jnp.sum(share)
    # If all weights are 0, the loss is 0 and not 0 / 0.
    return jnp.sum(jnp.where(share > 0, per_query, 0.0) * share) / jnp.where(total > 0, total, 1.0)


def example_groups(query_hash: jax.Array | None, document_hash: jax.Array | None, count: int) -> jax.Array:
    """[N] int32: examples of one group are duplicates. Without hashes each example is a group."""
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
    query_negatives: bool = True,
    integers: bool = False,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE of each query over all other documents *and queries*, without probable false negatives (section 2.3).

    L_i = -log e^(s(q_i,d_i)/tau) / (e^(s(q_i,d_i)/tau) + sum_{j!=i} m_i(d_j) e^(s(q_i,d_j)/tau)
                                                        + sum_{j!=i} m_i(q_j) e^(s(q_i,q_j)/tau))
    with the false-negative mask m_i(x) = 1 if s(q_i, x) <= s(q_i, d_i) + margin, else 0, which has no gradient. There
    is no document-document and no document-to-query term.

    Args:
      query: [N, D].
      document: [N, D]; document i is the positive of query i.
      temperature: tau.
      margin: false-negative margin: a candidate that scores higher than the positive by more than this is masked.
      document_hash: [N]; if given, copies of a query's document (equal hash) are masked.
      query_hash: [N]; if given, all duplicates of an example are masked: copies of its query, and their documents.
      valid: [N] bool; if given, only valid examples have a loss and serve as negatives.
      weight: [N], weight of each query in the mean.
      query_negatives: whether other queries are candidates; without, the last sum is left out.
      integers: whether all embeddings are integers from -127 to 127, as `tanh_int8` returns them. Devices then exchange
        a byte per dimension instead of four. The loss is the same.

    Returns:
      The loss and metrics: `accuracy` (share of queries whose positive scores above every negative),
      `positive_similarity`, `masked_negatives` (masked share of the 2 (N - 1) candidates, N - 1 without queries),
      `duplicates` and `false_negatives` (masked candidates per query, by reason).

    Example:
      `loss, metrics = pair_loss(tanh_int8(q), tanh_int8(d), temperature=0.02)`
    """
    count = query.shape[0]
    sent = [compact(each, integers) for each in (document, query)]
    query, document = normalize(query), normalize(document)
    positive = jnp.sum(query * document, axis=-1)
    example = jnp.arange(count)
    mask = {
        "temperature": temperature,
        "ceiling": jax.lax.stop_gradient(positive) + margin,
        "candidate_valid": valid,
    }
    # A query and its own document belong to its group, so they are never candidates.
    document_group = example_groups(query_hash, document_hash, count)
    query_group = example if query_hash is None else document_group
    candidates = [(document, document_group), *([(query, query_group)] if query_negatives else ())]
    found = [
        masked_logsumexp(query, each, group, group, compact=some, **mask)
        for (each, group), some in zip(candidates, sent, strict=False)
    ]

    logit = positive / temperature
    others = functools.reduce(jnp.logaddexp, [one.logsumexp for one in found])
    per_query = jnp.logaddexp(logit, others) - logit
    hardest = functools.reduce(jnp.maximum, [one.hardest for one in found])
    most = len(found) * (count - 1)
    masked = most - functools.reduce(jnp.add, [one.used for one in found])
    duplicates = functools.reduce(jnp.add, [group_sizes(group) - 1 for _, group in candidates])
    metrics = {
        "accuracy": mean_over_queries((positive > hardest).astype(jnp.float32), valid),
        "positive_similarity": mean_over_queries(positive, valid),
        "masked_negatives": mean_over_queries(masked / max(most, 1), valid),
        "duplicates": mean_over_queries(duplicates.astype(jnp.float32), valid),
        "false_negatives": mean_over_queries((masked - duplicates).astype(jnp.float32), valid),
    }
    return mean_over_queries(per_query, valid, weight), metrics


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
    integers: bool = False,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE of each query over all documents and all hard negatives of the batch (section 2.5).

    There is no false-negative mask and no query-query term: the data of this stage is small and trusted.

    Args:
      query: [N, D].
      document: [N, D]; document i is the positive of query i.
      negatives: [N, K, D], hard negatives of query i; they are negatives of every query of the batch.
      temperature: tau.
      document_hash, query_hash: [N]; if given, documents of an example's duplicates are masked.
      negative_hash: [N, K], with `document_hash`; if given, hard negatives of any query that are copies of such
        documents are masked too.
      weight: [N], weight of each query in the mean.
      integers: as for `pair_loss`.

    Returns:
      The loss and metrics: `accuracy`, `positive_similarity`, `duplicates` (masked candidates per query).
    """
    count, width = query.shape
    parts = [compact(each, integers) for each in (document, negatives.reshape(-1, width))]
    sent = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)  # as INT8 already: parts change their devices
    query, document, negatives = normalize(query), normalize(document), normalize(negatives)
    positive = jnp.sum(query * document, axis=-1)
    candidates = jnp.concatenate([document, negatives.reshape(-1, width)])
    group = example_groups(query_hash, document_hash, count)
    negative_group = jnp.full(candidates.shape[0] - count, -1, jnp.int32)
    if document_hash is not None and negative_hash is not None:
        negative_group = group_of_documents(group, document_hash, negative_hash.reshape(-1))
    candidate_group = jnp.concatenate([group, negative_group])
    others = masked_logsumexp(query, candidates, group, candidate_group, temperature=temperature, compact=sent)
    metrics = {
        "accuracy": jnp.mean(positive > others.hardest),
        "positive_similarity": jnp.mean(positive),
        "duplicates": jnp.mean((candidates.shape[0] - 1 - others.used).astype(jnp.float32)),
    }
    logit = positive / temperature
    return mean_over_queries(jnp.logaddexp(logit, others.logsumexp) - logit, weight=weight), metrics
