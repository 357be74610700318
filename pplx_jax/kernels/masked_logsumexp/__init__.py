"""The sum behind every contrastive loss: the public face, which keeps the whole matrix of scores out of memory."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.masked_logsumexp.blockwise import blockwise
from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum
from pplx_jax.parallel.rules import mesh_axes

__all__ = ["ABSENT", "Sum", "masked_logsumexp"]
BLOCK = 2048  # candidates at a time


def masked_logsumexp(
    query: jax.Array,
    candidate: jax.Array,
    query_group: jax.Array,
    candidate_group: jax.Array,
    *,
    temperature: jax.Array | float,
    ceiling: jax.Array | None = None,
    candidate_valid: jax.Array | None = None,
    block: int = BLOCK,
) -> Sum:
    """log sum_j e^(s_ij / temperature) over the candidates j that count for query i, with exact gradients.

    A candidate counts where it is valid, of another group than the query, and s_ij is at most the query's ceiling.
    Scores [N, block] exist at a time, in the backward pass again. Within `jax.set_mesh` each device has its share of
    the queries and of the candidates, and a block of them comes together at a time: what travels is embeddings and
    their gradients, never scores, and no device holds all candidates.

    Args:
      query: [N, D] float32; s is the product of rows, so normalise them for cosines.
      candidate: [M, D] float32.
      query_group: [N] int32.
      candidate_group: [M] int32.
      temperature: scalar; differentiable.
      ceiling: [N]; none where None. It carries no gradient.
      candidate_valid: [M] bool; all where None.
      block: candidates at a time.

    Returns:
      See `Sum`. Only `logsumexp` is differentiable.

    Raises:
      BadInput: `block` is not 1 or more.
    """
    if block < 1:
        raise BadInput(f"masked_logsumexp: block={block}; 1 or more candidates at a time")
    if ceiling is None:
        ceiling = jnp.full(query.shape[:1], jnp.inf, jnp.float32)
    if candidate_valid is None:
        candidate_valid = jnp.ones(candidate.shape[:1], bool)
    arguments = (
        query,
        candidate,
        query_group,
        candidate_group,
        jnp.asarray(temperature, jnp.float32),
        jax.lax.stop_gradient(ceiling),
        candidate_valid,
    )
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh_axes("rows", mesh)
    size = math.prod(mesh.shape[axis] for axis in axes)
    if size == 1:
        return blockwise(*arguments, block)

    def filled(x):  # up to equal shares, with candidates that are not valid and queries that nobody asks for
        return x if x.ndim == 0 else jnp.pad(x, ((0, -x.shape[0] % size), *((0, 0),) * (x.ndim - 1)))

    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    specs = (rows, rows, rows, rows, everywhere, rows, rows)

    def run(*shares):
        return blockwise(*shares, block, axes)

    found = jax.shard_map(run, in_specs=specs, out_specs=rows, check_vma=False)(*map(filled, arguments))
    return jax.tree.map(lambda x: x[: query.shape[0]], found)
