"""The embedding path: tokens -> encoder -> pooled vectors.

Training, evaluation, serving and export parity all call `embed`. `pplx_jax.kernels.quantization` quantizes its result.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.kernels.segment_pool import segment_pool
from pplx_jax.models.transformer import Qwen3
from pplx_jax.parallel.rules import spec


def embed(model: Qwen3, batch: dict[str, jax.Array], slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns the pooled vectors of a packed batch.

    Args:
      model: the encoder.
      batch: `tokens`, `segment_ids`, `positions` and `chunk_ids`, each [B, L].
      slots: S, the most pooled vectors per sequence.

    Returns:
      The vectors v [B, S, D] float32, and the number of tokens of each, [B, S] float32.
    """
    hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"])
    pool = segment_pool if model.config.pooling == "mean" else last_token
    return pool(hidden, batch["chunk_ids"], slots)


def last_token(hidden: jax.Array, chunk_ids: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Takes the hidden state of each slot's last token; arguments and result as for `segment_pool`."""
    places = jnp.broadcast_to(jnp.arange(chunk_ids.shape[1]), chunk_ids.shape)

    def of_slots(reduce, values):  # [B, L] -> [B, S]; slot 0 takes the tokens outside every slot
        return jax.vmap(lambda values, ids: reduce(values, ids, num_segments=slots + 1)[1:])(values, chunk_ids)

    last = of_slots(jax.ops.segment_max, places)  # negative for an empty slot
    counts = of_slots(jax.ops.segment_sum, jnp.ones(chunk_ids.shape, jnp.float32))
    found = jnp.take_along_axis(hidden, last.clip(0)[..., None], axis=1).astype(jnp.float32)
    return jnp.where(last[..., None] < 0, 0.0, found), counts


def take_slots(pooled: jax.Array, references: jax.Array) -> jax.Array:
    """Takes the vectors at (sequence, slot) references.

    On a mesh each vector is sent once, from the device that has it. XLA would gather all slots, used or not, on every
    device.

    Args:
      pooled: [B, S, ...].
      references: [N, ..., 2]; a negative one takes sequence 0 and slot 0, to be masked by the caller.

    Returns:
      [N, ..., ...], sharded over the mesh by N if the devices divide N.
    """
    references = references.clip(0)
    mesh = jax.sharding.get_abstract_mesh()
    axes = None if mesh.empty else spec(("rows",), pooled.shape[:1], mesh)[0]
    if not axes:
        return pooled[references[..., 0], references[..., 1]]
    sharded = spec(("rows",), references.shape[:1], mesh)[0] == axes

    def local(pooled, references):
        sequence = references[..., 0] - jax.lax.axis_index(axes) * pooled.shape[0]
        found = pooled[sequence.clip(0, pooled.shape[0] - 1), references[..., 1]]
        here = (sequence >= 0) & (sequence < pooled.shape[0])
        found = jnp.where(here.reshape(here.shape + (1,) * (found.ndim - here.ndim)), found, 0)
        if sharded:
            return jax.lax.psum_scatter(found, axes, scatter_dimension=0, tiled=True)
        return jax.lax.psum(found, axes)

    out = PartitionSpec(axes if sharded else None)
    return jax.shard_map(local, in_specs=(PartitionSpec(axes), PartitionSpec()), out_specs=out, check_vma=False)(
        pooled, references
    )
