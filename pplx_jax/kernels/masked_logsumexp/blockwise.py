"""One block of candidates at a time, forward and backward, in plain XLA: products of this size need no kernel."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum, scores_and_mask

GATHERED = 2**26  # numbers of candidates that a device gathers at once: 16,384 of any width up to 4,096


class _Candidates(NamedTuple):
    """Candidates as they are exchanged.

    Attributes:
      vectors: [M, D] float32, or INT8 with a `factor`.
      factor: [M] float32; the vectors are their product. None for float32 vectors.
      group: [M] int32.
      valid: [M] bool.
    """

    vectors: jax.Array
    factor: jax.Array | None
    group: jax.Array
    valid: jax.Array

    def floats(self) -> jax.Array:
        """[M, D] float32."""
        return self.vectors if self.factor is None else self.vectors.astype(jnp.float32) * self.factor[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def blockwise(
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact, block, axes=()
) -> Sum:
    """Returns what `reference` returns, in memory linear in N and in M.

    Args:
      query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact: as for
        `masked_logsumexp.masked_logsumexp`.
      block: candidates per block.
      axes: mesh axes that shard queries and candidates. Each device gathers up to `GATHERED` numbers of all candidates
        at once, and compares its own queries with them block by block.
    """
    return _sum(
        query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact, block, axes
    )[0]


def _sum(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact, block, axes):
    """Returns the sum, and all candidates if they were gathered at once."""

    def step(carry, part):
        maximum, total, hardest, used = carry
        scores, counts = scores_and_mask(query, part.floats(), query_group, part.group, ceiling, part.valid)
        hardest = jnp.maximum(hardest, jnp.where(counts, scores, ABSENT).max(axis=1))
        new_maximum = jnp.maximum(maximum, jnp.where(counts, scores / temperature, ABSENT).max(axis=1))
        weights = jnp.where(counts, jnp.exp(scores / temperature - new_maximum[:, None]), 0.0)
        total = total * jnp.exp(maximum - new_maximum) + weights.sum(axis=1)
        return (new_maximum, total, hardest, used + counts.sum(axis=1)), None

    def of_group(carry, whole):
        return jax.lax.scan(step, carry, _in_parts(whole, block))[0], None

    absent = jnp.full(query.shape[:1], ABSENT)
    start = (absent, jnp.zeros_like(absent), absent, jnp.zeros(query.shape[:1], jnp.int32))
    own = _candidates(candidate, candidate_group, candidate_valid, compact, axes)
    (maximum, total, hardest, used), _, whole = _over_groups(of_group, start, own, axes)
    return Sum(jnp.where(used > 0, maximum + jnp.log(jnp.maximum(total, 1e-37)), ABSENT), hardest, used), whole


def _candidates(candidate, candidate_group, candidate_valid, compact, axes) -> _Candidates:
    if compact is None or not axes:  # on one device nothing is exchanged
        return _Candidates(candidate, None, candidate_group, candidate_valid)
    return _Candidates(compact[0], compact[1], candidate_group, candidate_valid)


def _over_groups(of_group, carry, own: _Candidates, axes, whole: _Candidates | None = None):
    """Calls `of_group(carry, candidates of all devices)` for one group of this device's candidates after another.

    Args:
      of_group: returns (carry, output).
      carry: the first one.
      own: this device's candidates.
      axes: as for `blockwise`.
      whole: all candidates, if they are here already.

    Returns:
      The last carry; the outputs, stacked; all candidates if there is one group, to spare gathering them again.
    """
    devices = jax.lax.axis_size(axes) if axes else 1
    groups = _in_parts(own, GATHERED // max(own.vectors.shape[1] * devices, 1)) if axes else None
    if groups is None or groups.group.shape[0] == 1:
        whole = _all_gather(own, axes) if whole is None else whole
        carry, output = of_group(carry, whole)
        return carry, jax.tree.map(lambda x: x[None], output), whole
    carry, outputs = jax.lax.scan(lambda carry, part: of_group(carry, _all_gather(part, axes)), carry, groups)
    return carry, outputs, None


def _all_gather(part, axes):
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), part) if axes else part


def _in_parts(candidates: _Candidates, size: int) -> Any:
    """Returns candidates in parts [parts, size, ...], the last one padded with invalid ones."""
    count = candidates.group.shape[0]
    size = max(1, min(size, count))

    def split(x):
        return jnp.pad(x, ((0, -count % size), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, candidates)


def _forward(
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact, block, axes
):
    arguments = (query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact)
    found, whole = _sum(*arguments, block, axes)
    return found, (*arguments, found.logsumexp, whole if axes else None)


def _backward(block, axes, saved, gradients):
    query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid, compact, total, whole = saved
    gradient = gradients.logsumexp

    def step(carry, part):
        query_gradient, temperature_gradient = carry
        vectors = part.floats()
        scores, counts = scores_and_mask(query, vectors, query_group, part.group, ceiling, part.valid)
        weights = jnp.where(counts, jnp.exp(scores / temperature - total[:, None]), 0.0) * gradient[:, None]
        scores_gradient = weights / temperature
        matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        temperature_gradient -= jnp.sum(scores_gradient * scores) / temperature
        return (query_gradient + matmul(scores_gradient, vectors), temperature_gradient), matmul(
            scores_gradient.T, query
        )

    def of_group(carry, whole):
        carry, gradient = jax.lax.scan(step, carry, _in_parts(whole, block))
        gradient = gradient.reshape(-1, candidate.shape[1])[: whole.group.shape[0]]
        if axes:  # sums over the queries of all devices; each device keeps the gradient of its own candidates
            gradient = jax.lax.psum_scatter(gradient, axes, tiled=True)
        return carry, gradient

    own = _candidates(candidate, candidate_group, candidate_valid, compact, axes)
    start = (jnp.zeros_like(query), jnp.float32(0.0))
    (query_gradient, temperature_gradient), candidate_gradient, _ = _over_groups(of_group, start, own, axes, whole)
    candidate_gradient = candidate_gradient.reshape(-1, candidate.shape[1])[: candidate.shape[0]]
    return query_gradient, candidate_gradient, None, None, temperature_gradient, jnp.zeros_like(ceiling), None, None


blockwise.defvjp(_forward, _backward)
