"""The one embedding path: encoder, then pooling. Quantization follows in `pplx_jax.models.quantization`.

Training, evaluation, serving and export parity all call `embed`.
"""

import jax

from pplx_jax.kernels.segment_pool import segment_pool
from pplx_jax.models.qwen3 import Qwen3


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
    """Vectors at (row, slot) references [..., 2]: [..., D]. A negative reference gives row 0's, to be masked."""
    return pooled[references[..., 0].clip(0), references[..., 1].clip(0)]
