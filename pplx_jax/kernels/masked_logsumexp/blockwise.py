"""A block of candidates at a time, forward and backward, in plain XLA: products of this size leave nothing to gain."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum, scores_and_mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def blockwise(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block) -> Sum:
    """What `reference` returns, in memory linear in N and in M.

    Args:
      query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid: as of the face.
      block: candidates at a time.
    """

    def step(carry, part):
        most, total, hardest, used = carry
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        hardest = jnp.maximum(hardest, jnp.where(counts, scores, ABSENT).max(axis=1))
        new_most = jnp.maximum(most, jnp.where(counts, scores / temperature, ABSENT).max(axis=1))
        weights = jnp.where(counts, jnp.exp(scores / temperature - new_most[:, None]), 0.0)
        total = total * jnp.exp(most - new_most) + weights.sum(axis=1)
        return (new_most, total, hardest, used + counts.sum(axis=1)), None

    absent = jnp.full(query.shape[:1], ABSENT)
    start = (absent, jnp.zeros_like(absent), absent, jnp.zeros(query.shape[:1], jnp.int32))
    parts = _blocks(candidate, candidate_group, candidate_valid, block)
    (most, total, hardest, used), _ = jax.lax.scan(step, start, parts)
    return Sum(jnp.where(used > 0, most + jnp.log(jnp.maximum(total, 1e-37)), ABSENT), hardest, used)


def _blocks(candidate, candidate_group, candidate_valid, block):
    """Candidates in blocks [T, block, ...], the last one filled up with invalid ones."""
    count = candidate.shape[0]
    block = min(block, count)
    filled = -count % block

    def split(x):
        return jnp.pad(x, ((0, filled), *((0, 0),) * (x.ndim - 1))).reshape(-1, block, *x.shape[1:])

    return split(candidate), split(candidate_group), split(candidate_valid)


def _forward(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block):
    arguments = (query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid)
    found = blockwise(*arguments, block)
    return found, (*arguments, found.logsumexp)


def _backward(block, saved, gradients):
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, total = saved
    gradient = gradients.logsumexp

    def step(carry, part):
        of_query, of_temperature = carry
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        shares = jnp.where(counts, jnp.exp(scores / temperature - total[:, None]), 0.0) * gradient[:, None]
        of_scores = shares / temperature
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        of_temperature -= jnp.sum(of_scores * scores) / temperature
        return (of_query + product(of_scores, part[0]), of_temperature), product(of_scores.T, query)

    parts = _blocks(candidate, candidate_group, candidate_valid, block)
    (of_query, of_temperature), of_candidate = jax.lax.scan(step, (jnp.zeros_like(query), jnp.float32(0.0)), parts)
    of_candidate = of_candidate.reshape(-1, candidate.shape[1])[: candidate.shape[0]]
    return of_query, of_candidate, None, None, of_temperature, jnp.zeros_like(ceiling), None


blockwise.defvjp(_forward, _backward)
