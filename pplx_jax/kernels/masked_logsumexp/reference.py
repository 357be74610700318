"""The same with the whole matrix of scores: the definition that the blockwise one is held against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ABSENT = jnp.finfo(jnp.float32).min  # the logarithm of a sum of nothing, kept finite


class Sum(NamedTuple):
    """What is known of each query's candidates.

    Attributes:
      logsumexp: [N] float32; `ABSENT` where none counts.
      hardest: [N] float32, the highest score that counts; `ABSENT` where none does.
      used: [N] int32, how many count.
    """

    logsumexp: jax.Array
    hardest: jax.Array
    used: jax.Array


def scores_and_mask(query, candidate, query_group, candidate_group, ceiling, candidate_valid):
    """s [N, M], and which of them count."""
    # Float32 all through: at temperature 0.02 an error of bfloat16's size in a cosine is a third of a nat.
    scores = jnp.einsum("nd,md->nm", query, candidate, precision=jax.lax.Precision.HIGHEST)
    counts = candidate_valid[None, :] & (query_group[:, None] != candidate_group[None, :])
    return scores, counts & (scores <= ceiling[:, None])


def reference(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid) -> Sum:
    """Arguments and result as of the face, all given."""
    scores, counts = scores_and_mask(query, candidate, query_group, candidate_group, ceiling, candidate_valid)
    some = counts.any(axis=1)
    logits = jnp.where(counts, scores / temperature, -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(some[:, None], logits, 0.0), axis=1)
    return Sum(jnp.where(some, total, ABSENT), jnp.where(counts, scores, ABSENT).max(axis=1), counts.sum(axis=1))
