"""Rows of a table whose parts lie on several devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.parallel.collectives import all_gather_parts, scatter_sum
from pplx_jax.parallel.rules import parameter_axes, spec


def lookup(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """Embeddings of `tokens`.

    Within `jax.set_mesh` each device gathers the table, in `dtype`, and looks up its own tokens: partitioned by XLA it
    would be a gather of every device's tokens, or of a float32 table. The table's gradient is added up in float32.

    Args:
      table: [V, D].
      tokens: [B, L].
      dtype: of the result.

    Returns:
      [B, L, D].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table[tokens].astype(dtype)
    partition = spec(parameter_axes("embed.embedding", 2), table.shape, mesh)
    of_tokens = spec(("rows", "tokens"), tokens.shape, mesh)
    run = functools.partial(_lookup, dtype=dtype, partition=partition)
    return jax.shard_map(
        run, in_specs=(partition, of_tokens), out_specs=PartitionSpec(*of_tokens, None), check_vma=False
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
    whole = [size * count for size, count in zip(part.shape[1:], axis_sizes, strict=True)]
    summed = jnp.zeros(whole, part.dtype).at[tokens].add(cotangent.astype(part.dtype))
    return scatter_sum(summed, partition), None


def _size(axes) -> int:
    return jax.lax.axis_size(axes) if axes else 1


_lookup.defvjp(_forward, _backward)
