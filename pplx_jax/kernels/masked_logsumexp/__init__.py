"""The logsumexp of every contrastive loss, without the whole matrix of scores in memory: the public function."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.masked_logsumexp.blockwise import blockwise
from pplx_jax.kernels.masked_logsumexp.reference import ABSENT, Sum
from pplx_jax.parallel.rules import mesh_axes

__all__ = ["ABSENT", "Sum", "masked_logsumexp"]
BLOCK = 2048  # most candidates per block
_LEAST_BLOCK = 128
_SCORES = 2**22  # scores in memory at a time, for any number of queries up to 32,768 on a device


def masked_logsumexp(
    query: jax.Array,
    candidate: jax.Array,
    query_group: jax.Array,
    candidate_group: jax.Array,
    *,
    temperature: jax.Array | float,
    ceiling: jax.Array | None = None,
    candidate_valid: jax.Array | None = None,
    compact: tuple[jax.Array, jax.Array] | None = None,
    block: int | None = None,
) -> Sum:
    """Returns log sum_j e^(s_ij / temperature) over the candidates j that count for query i, with exact gradients.

    A candidate counts if it is valid, its group is not the query's, and s_ij is at most the query's ceiling. The scores
    of one block, [N, block], exist at a time, and again in the backward pass. Within `jax.set_mesh` queries and
    candidates are sharded. Devices gather the candidates, all at once up to `blockwise.GATHERED` numbers, and each
    compares its own queries with them. They exchange embeddings and their gradients, but no scores.

    Args:
      query: [N, D] float32; s is the dot product, so normalize the vectors for cosines.
      candidate: [M, D] float32.
      query_group: [N] int32.
      candidate_group: [M] int32.
      temperature: scalar; differentiable.
      ceiling: [N], without a gradient; no ceiling if None.
      candidate_valid: [M] bool; all are valid if None.
      compact: INT8 [M, D] and a factor [M], whose product is `candidate`. If given, devices exchange these instead of
        float32 vectors. The gradient is that of `candidate`.
      block: candidates per block; None for fewer with more queries, so that memory does not grow.

    Returns:
      A `Sum`. Only `logsumexp` is differentiable.

    Raises:
      BadInput: `block` is less than 1.
    """
    if block is not None and block < 1:
        raise BadInput(f"masked_logsumexp: block={block}; set it to 1 or more candidates")
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
        jax.lax.stop_gradient(compact),
    )
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh_axes("rows", mesh)
    size = math.prod(mesh.shape[axis] for axis in axes)
    if block is None:
        block = max(_LEAST_BLOCK, min(BLOCK, _SCORES // max(-(-query.shape[0] // size), 1)))
    if size == 1:
        return blockwise(*arguments, block)

    def padded(x):  # to a multiple of the devices, with invalid candidates and queries that are cut off again
        return x if x.ndim == 0 else jnp.pad(x, ((0, -x.shape[0] % size), *((0, 0),) * (x.ndim - 1)))

    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    specs = (rows, rows, rows, rows, everywhere, rows, rows, rows)

    def run(*local):
        return blockwise(*local, block, axes)

    found = jax.shard_map(run, in_specs=specs, out_specs=rows, check_vma=False)(*jax.tree.map(padded, arguments))
    return jax.tree.map(lambda x: x[: query.shape[0]], found)
