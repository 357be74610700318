"""Matryoshka representation learning: the same loss on prefixes of the embedding (arXiv 2205.13147)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pplx_jax.core.errors import BadInput


def matryoshka(
    loss: Callable, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Weighted mean of `loss` over the first d dimensions of every embedding, for each d of `dims`.

    Quantization is elementwise, so a prefix of a quantized embedding is the quantized prefix.

    Args:
      loss: takes embeddings as its positional arguments ([..., D]) and anything else by keyword; returns
        (scalar, metrics).
      dims: prefix lengths; the full width is only part of the loss if it is listed.
      weights: one per prefix; equal weights if None.

    Returns:
      A function of the same arguments. Its metrics are those of the longest prefix, and `loss_{d}` for each d.

    Raises:
      BadInput: no prefixes, a prefix below 1, another number of weights, a weight below 0, or a prefix longer than the
        embedding.
    """
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if not dims or len(weights) != len(dims) or sum(weights) <= 0:
        raise BadInput(f"matryoshka: {len(dims)} prefixes with {len(weights)} weights; give one weight per prefix")
    if min(dims) < 1 or min(weights) < 0:
        raise BadInput(
            f"matryoshka: prefixes {tuple(dims)} with weights {tuple(weights)}; set prefixes to 1 or more and weights "
            "to 0 or more"
        )

    def over_prefixes(*embeddings: jax.Array, **arguments):
        width = embeddings[0].shape[-1]
        if max(dims) > width:
            raise BadInput(f"matryoshka: prefix {max(dims)} is longer than the embedding, which has {width} dimensions")
        total, metrics, losses = jnp.float32(0), {}, {}
        for dim, weight in sorted(zip(dims, weights, strict=True)):
            value, metrics = loss(*(e[..., :dim] for e in embeddings), **arguments)
            total += weight / sum(weights) * value
            losses[f"loss_{dim}"] = value
        return total, metrics | losses

    return over_prefixes
