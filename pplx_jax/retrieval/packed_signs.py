"""The signs of embeddings of any stored form, as servers store them."""

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.quantization import BitOrder, Quantization, pack_bits, unpack_bits
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder

_WITH_SIGNS = ("int8", "binary", "ubinary")


def require_signs(source: EmbeddingFolder, engine: str) -> None:
    """Raises BadInput unless the signs of the embeddings fill whole bytes."""
    settings = source.settings
    if settings.quantization not in _WITH_SIGNS or settings.dims % 8:
        raise BadInput(
            f"{source.path} holds {settings.quantization!r} vectors of {settings.dims} dimensions; the engine {engine} "
            f"takes {', '.join(_WITH_SIGNS)} and a multiple of 8"
        )


def packed_signs(vectors: np.ndarray, quantization: Quantization, bit_order: BitOrder) -> np.ndarray:
    """Returns the packed signs of embeddings, most significant bit first, for any stored bit order.

    INT8 embeddings have the signs of the integers. So a pooled value in (-0.5 / 127, 0), which rounds to 0, counts as
    positive, for queries as well.

    Args:
        vectors: [N, width] of quantization "int8", "binary" or "ubinary".

    Returns:
        uint8 [N, dims / 8].
    """
    if quantization != "ubinary":
        return pack_bits(vectors)
    return np.asarray(vectors) if bit_order == "big" else pack_bits(unpack_bits(vectors, bit_order))
