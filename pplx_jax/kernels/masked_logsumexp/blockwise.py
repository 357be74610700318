"""One block of candidates at a time, forward and backward, in plain XLA: products of this size need no kernel."""

import functools

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum, scores_and_mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def blockwise(
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block, axes=()
) -> Sum:
    """Returns what `reference` returns, in memory linear in N and in M.

    Args:
      query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid: as for
        `masked_logsumexp.masked_logsumexp`.
      block: candidates per block.
      axes: mesh axes that shard queries and candidates; each device holds a part of each block.
    """

    def step(carry, part):
        part = _all_gather(part, axes)
        maximum, total, hardest, used = carry
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        hardest = jnp.maximum(hardest, jnp.where(counts, scores, ABSENT).max(axis=1))
        new_maximum = jnp.maximum(maximum, jnp.where(counts, scores / temperature, ABSENT).max(axis=1))
        weights = jnp.where(counts, jnp.exp(scores / temperature - new_maximum[:, None]), 0.0)
        total = total * jnp.exp(maximum - new_maximum) + weights.sum(axis=1)
        return (new_maximum, total, hardest, used + counts.sum(axis=1)), None

    absent = jnp.full(query.shape[:1], ABSENT)
    start = (absent, jnp.zeros_like(absent), absent, jnp.zeros(query.shape[:1], jnp.int32))
    parts = _blocks(candidate, candidate_group, candidate_valid, block, axes)
    (maximum, total, hardest, used), _ = jax.lax.scan(step, start, parts)
    return Sum(jnp.where(used > 0, maximum + jnp.log(jnp.maximum(total, 1e-37)), ABSENT), hardest, used)


def _all_gather(part, axes):
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), part) if axes else part


def _blocks(candidate, candidate_group, candidate_valid, block, axes):
    """Returns this device's candidates in blocks [blocks, candidates, ...], the last one padded with invalid ones."""
    count = candidate.shape[0]
    block = max(1, min(block // jax.lax.axis_size(axes) if axes else block, count))
    padding = -count % block

    def split(x):
        return jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, block, *x.shape[1:])

    return split(candidate), split(candidate_group), split(candidate_valid)


def _forward(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, block, axes):
    arguments = (query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid)
    found = blockwise(*arguments, block, axes)
    return found, (*arguments, found.logsumexp)


def _backward(block, axes, saved, gradients):
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, total = saved
    gradient = gradients.logsumexp

    def step(carry, part):
        query_gradient, temperature_gradient = carry
        part = _all_gather(part, axes)
        scores, counts = scores_and_mask(query, part[0], query_group, part[1], ceiling, part[2])
        weights = jnp.where(counts, jnp.exp(scores / temperature - total[:, None]), 0.0) * gradient[:, None]
        scores_gradient = weights / temperature
        matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        temperature_gradient -= jnp.sum(scores_gradient * scores) / temperature
        part_gradient = matmul(scores_gradient.T, query)
        if axes:  # sums over the queries of all devices; each device keeps the gradient of its own candidates
            part_gradient = jax.lax.psum_scatter(part_gradient, axes, tiled=True)
        return (query_gradient + matmul(scores_gradient, part[0]), temperature_gradient), part_gradient

    parts = _blocks(candidate, candidate_group, candidate_valid, block, axes)
    start = (jnp.zeros_like(query), jnp.float32(0.0))
    (query_gradient, temperature_gradient), candidate_gradient = jax.lax.scan(step, start, parts)
    candidate_gradient = candidate_gradient.reshape(-1, candidate.shape[1])[: candidate.shape[0]]
    return query_gradient, candidate_gradient, None, None, temperature_gradient, jnp.zeros_like(ceiling), None


blockwise.defvjp(_forward, _backward)
