"""Embedding lookup in a table that is sharded over devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.parallel.collectives import all_gather_parts, scatter_sum
from pplx_jax.parallel.rules import parameter_axes, spec

EMBEDDING_TABLE = "embed.embedding"  # path of the input embeddings among the parameters


def lookup(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """Returns the embeddings of `tokens`.

    Within `jax.set_mesh` each device gathers the table, in `dtype`, and looks up its own tokens. XLA's partitioner
    would gather the tokens of all devices, or the table in float32. The gradient of the table is summed in float32.

    Args:
      table: [V, D].
      tokens: [B, L].
      dtype: dtype of the result.

    Returns:
      [B, L, D].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table[tokens].astype(dtype)
    partition = spec(parameter_axes(EMBEDDING_TABLE, 2), table.shape, mesh)
    token_spec = spec(("rows", "tokens"), tokens.shape, mesh)
    run = functools.partial(_lookup, dtype=dtype, partition=partition)
    return jax.shard_map(
        run, in_specs=(partition, token_spec), out_specs=PartitionSpec(*token_spec, None), check_vma=False
    )(table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(part: jax.Array, tokens: jax.Array, dtype: str, partition: PartitionSpec) -> jax.Array:
    return all_gather_parts(part.astype(dtype), partition)[tokens]


def _forward(part, tokens, dtype, partition):
    return _lookup(part, tokens, dtype, partition), (tokens, jnp.zeros((0, *part.shape), part.dtype))


def _backward(dtype, partition, saved, cotangent):
    del dtype
    tokens, part = saved
    axis_sizes = [_size(axes) for axes in partition]
    full_shape = [size * count for size, count in zip(part.shape[1:], axis_sizes, strict=True)]
    summed = jnp.zeros(full_shape, part.dtype).at[tokens].add(cotangent.astype(part.dtype))
    return scatter_sum(summed, partition), None


def _size(axes) -> int:
    return jax.lax.axis_size(axes) if axes else 1


_lookup.defvjp(_forward, _backward)
