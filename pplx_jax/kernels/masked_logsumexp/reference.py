"""The masked sum with the whole matrix of scores in memory: the definition that `blockwise` is compared with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ABSENT = jnp.finfo(jnp.float32).min  # the logarithm of an empty sum, as a finite number


class Sum(NamedTuple):
    """Result for each query.

    Attributes:
      logsumexp: [N] float32; `ABSENT` if no candidate counts.
      hardest: [N] float32, the highest score that counts; `ABSENT` if none does.
      used: [N] int32, the number of candidates that count.
    """

    logsumexp: jax.Array
    hardest: jax.Array
    used: jax.Array


def scores_and_mask(query, candidate, query_group, candidate_group, ceiling, candidate_valid):
    """Returns the scores [N, M], and which of them count [N, M]."""
    # Float32 throughout: at temperature 0.02 a bfloat16 rounding error in a cosine is a third of a nat.
    scores = jnp.einsum("nd,md->nm", query, candidate, precision=jax.lax.Precision.HIGHEST)
    counts = candidate_valid[None, :] & (query_group[:, None] != candidate_group[None, :])
    return scores, counts & (scores <= ceiling[:, None])


def reference(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid) -> Sum:
    """Returns what `masked_logsumexp.masked_logsumexp` returns; all arguments are required."""
    scores, counts = scores_and_mask(query, candidate, query_group, candidate_group, ceiling, candidate_valid)
    some = counts.any(axis=1)
    logits = jnp.where(counts, scores / temperature, -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(some[:, None], logits, 0.0), axis=1)
    return Sum(jnp.where(some, total, ABSENT), jnp.where(counts, scores, ABSENT).max(axis=1), counts.sum(axis=1))
