"""The one path from tokens to pooled vectors: encoder, then pooling.

Training, evaluation, serving and export parity all call `embed`. It stops before quantization, which each of them takes
from `pplx_jax.kernels.quantization`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.kernels.segment_pool import segment_pool
from pplx_jax.models.transformer import Qwen3
from pplx_jax.parallel.rules import spec


def embed(model: Qwen3, batch: dict[str, jax.Array], slots: int) -> tuple[jax.Array, jax.Array]:
    """Pooled vectors of a packed batch.

    Args:
      model: the encoder.
      batch: `tokens`, `segment_ids`, `positions`, `chunk_ids`, each [B, L].
      slots: S, the most pooled vectors a row holds.

    Returns:
      v [B, S, D] float32 and the tokens each was pooled over [B, S] float32.
    """
    hidden = model(batch["tokens"], batch["segment_ids"], batch["positions"])
    return segment_pool(hidden, batch["chunk_ids"], slots)


def gather(pooled: jax.Array, references: jax.Array) -> jax.Array:
    """Vectors at (row, slot) references.

    Args:
      pooled: [B, S, ...].
      references: [N, ..., 2]; a negative one gives row 0's, to be masked.

    Returns:
      [N, ..., ...], spread over the mesh by N. Each vector leaves the device that has it once: XLA would gather all
      slots, used or not, on every device.
    """
    references = references.clip(0)
    mesh = jax.sharding.get_abstract_mesh()
    rows = None if mesh.empty else spec(("rows",), pooled.shape[:1], mesh)[0]
    if not rows:
        return pooled[references[..., 0], references[..., 1]]
    spread = spec(("rows",), references.shape[:1], mesh)[0] == rows

    def local(pooled, references):
        row = references[..., 0] - jax.lax.axis_index(rows) * pooled.shape[0]
        found = pooled[row.clip(0, pooled.shape[0] - 1), references[..., 1]]
        here = (row >= 0) & (row < pooled.shape[0])
        found = jnp.where(here.reshape(here.shape + (1,) * (found.ndim - here.ndim)), found, 0)
        if spread:
            return jax.lax.psum_scatter(found, rows, scatter_dimension=0, tiled=True)
        return jax.lax.psum(found, rows)

    out = PartitionSpec(rows if spread else None)
    return jax.shard_map(local, in_specs=(PartitionSpec(rows), PartitionSpec()), out_specs=out, check_vma=False)(
        pooled, references
    )
