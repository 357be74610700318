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
      dims: prefix lengths; list the full width to keep it in the loss.
      weights: one a prefix; equal where not given.

    Returns:
      A function of the same arguments. Metrics are those of the longest prefix, and `loss_{d}` for each d.

    Raises:
      BadInput: no dims, a prefix of no dimension, weights of another length or below 0, or a prefix longer than the
        embedding.
    """
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if not dims or len(weights) != len(dims) or sum(weights) <= 0:
        raise BadInput(f"matryoshka: {len(dims)} prefixes with {len(weights)} weights; give one weight a prefix")
    if min(dims) < 1 or min(weights) < 0:
        raise BadInput(f"matryoshka: prefixes {tuple(dims)} of weights {tuple(weights)}; give 1 or more, and 0 or more")

    def over_prefixes(*embeddings: jax.Array, **arguments):
        width = embeddings[0].shape[-1]
        if max(dims) > width:
            raise BadInput(f"matryoshka: prefix {max(dims)} is longer than the embedding's {width} dimensions")
        total, metrics, of_dims = jnp.float32(0), {}, {}
        for dim, weight in sorted(zip(dims, weights, strict=True)):
            value, metrics = loss(*(e[..., :dim] for e in embeddings), **arguments)
            total += weight / sum(weights) * value
            of_dims[f"loss_{dim}"] = value
        return total, metrics | of_dims

    return over_prefixes
