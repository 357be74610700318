"""Gathering and scattering sharded arrays within a `shard_map`."""

import jax
from jax.sharding import PartitionSpec


def all_gather_parts(part: jax.Array, partition: PartitionSpec) -> jax.Array:
    """Returns the whole array; each device has the part given by `partition`."""
    for place, axes in enumerate(partition):
        if axes:
            part = jax.lax.all_gather(part, axes, axis=place, tiled=True)
    return part


def scatter_sum(whole: jax.Array, partition: PartitionSpec) -> jax.Array:
    """Returns this device's part of the sum over the devices of `partition`; the transpose of `all_gather_parts`."""
    for place, axes in enumerate(partition):
        if axes:
            whole = jax.lax.psum_scatter(whole, axes, scatter_dimension=place, tiled=True)
    return whole
