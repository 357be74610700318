"""The signs of embeddings of any stored form, as engines store them."""

import numpy as np

from pplx_jax.kernels.quantization import BitOrder, Quantization, pack_bits, unpack_bits


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
