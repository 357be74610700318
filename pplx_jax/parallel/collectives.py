"""An array whose parts lie on several devices, whole and back again, within a `shard_map`."""

import jax
from jax.sharding import PartitionSpec


def gather(part: jax.Array, partition: PartitionSpec) -> jax.Array:
    """The whole array of which each device has the part that `partition` says."""
    for place, axes in enumerate(partition):
        if axes:
            part = jax.lax.all_gather(part, axes, axis=place, tiled=True)
    return part


def scatter_sum(whole: jax.Array, partition: PartitionSpec) -> jax.Array:
    """Of the sum over the devices of `partition`, each one's own part: the transpose of `gather`."""
    for place, axes in enumerate(partition):
        if axes:
            whole = jax.lax.psum_scatter(whole, axes, scatter_dimension=place, tiled=True)
    return whole
