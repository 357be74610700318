"""A block of candidates at a time, forward and backward, in plain XLA: products of this size leave nothing to gain."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum, scores_and_mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def blockwise(
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block, axes=()
) -> Sum:
    """What `reference` returns, in memory linear in N and in M.

    Args:
      query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid: as of the face.
      block: candidates at a time.
      axes: mesh axes that queries and candidates are spread over; of each block every device brings its share.
    """

    def step(carry, part):
        part = _from_everywhere(part, axes)
        most, total, hardest, used = carry
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        hardest = jnp.maximum(hardest, jnp.where(counts, scores, ABSENT).max(axis=1))
        new_most = jnp.maximum(most, jnp.where(counts, scores / temperature, ABSENT).max(axis=1))
        weights = jnp.where(counts, jnp.exp(scores / temperature - new_most[:, None]), 0.0)
        total = total * jnp.exp(most - new_most) + weights.sum(axis=1)
        return (new_most, total, hardest, used + counts.sum(axis=1)), None

    absent = jnp.full(query.shape[:1], ABSENT)
    start = (absent, jnp.zeros_like(absent), absent, jnp.zeros(query.shape[:1], jnp.int32))
    parts = _blocks(candidate, candidate_group, candidate_valid, block, axes)
    (most, total, hardest, used), _ = jax.lax.scan(step, start, parts)
    return Sum(jnp.where(used > 0, most + jnp.log(jnp.maximum(total, 1e-37)), ABSENT), hardest, used)


def _from_everywhere(part, axes):
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), part) if axes else part


def _blocks(candidate, candidate_group, candidate_valid, block, axes):
    """This device's candidates in blocks [T, share, ...], the last one filled up with invalid ones."""
    count = candidate.shape[0]
    block = max(1, min(block // jax.lax.axis_size(axes) if axes else block, count))
    filled = -count % block

    def split(x):
        return jnp.pad(x, ((0, filled), *((0, 0),) * (x.ndim - 1))).reshape(-1, block, *x.shape[1:])

    return split(candidate), split(candidate_group), split(candidate_valid)


def _forward(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block, axes):
    arguments = (query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid)
    found = blockwise(*arguments, block, axes)
    return found, (*arguments, found.logsumexp)


def _backward(block, axes, saved, gradients):
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, total = saved
    gradient = gradients.logsumexp

    def step(carry, part):
        of_query, of_temperature = carry
        part = _from_everywhere(part, axes)
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        shares = jnp.where(counts, jnp.exp(scores / temperature - total[:, None]), 0.0) * gradient[:, None]
        of_scores = shares / temperature
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        of_temperature -= jnp.sum(of_scores * scores) / temperature
        of_part = product(of_scores.T, query)
        if axes:  # every device's queries have a part in it; each keeps what is of its own candidates
            of_part = jax.lax.psum_scatter(of_part, axes, tiled=True)
        return (of_query + product(of_scores, part[0]), of_temperature), of_part

    parts = _blocks(candidate, candidate_group, candidate_valid, block, axes)
    (of_query, of_temperature), of_candidate = jax.lax.scan(step, (jnp.zeros_like(query), jnp.float32(0.0)), parts)
    of_candidate = of_candidate.reshape(-1, candidate.shape[1])[: candidate.shape[0]]
    return of_query, of_candidate, None, None, of_temperature, jnp.zeros_like(ceiling), None


blockwise.defvjp(_forward, _backward)
