"""Quantization of pooled vectors: tanh INT8 and sign bits, rounding and bit order (arXiv 2602.11151, section 2.3).

Three conventions are in use for these models. Each has one name here: "none" is the pooled vector v, "tanh" is tanh(v),
and "int8" holds the integers round(127 tanh(v)).
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.core.errors import BadInput

Quantization = Literal["int8", "binary", "ubinary", "tanh", "none"]
Rounding = Literal["half_even", "floor"]
BitOrder = Literal["big", "little"]
LEVELS = 127
_BLOCK = 1 << 20  # elements


def _round(scaled: jax.Array, rounding: Rounding) -> jax.Array:
    if rounding == "half_even":  # the released code
        return jnp.round(scaled)
    if rounding == "floor":  # the paper's formula
        return jnp.floor(scaled + 0.5)
    raise BadInput(f"rounding={rounding!r} is not one of {', '.join(get_args(Rounding))}")


def tanh_int8(v: jax.Array, rounding: Rounding = "half_even") -> jax.Array:
    """Returns clip(round(127 tanh v), -127, 127) as float32 integers.

    The straight-through estimator ignores the rounding: the gradient is that of 127 tanh(v), 127 (1 - tanh(v)^2).

    Args:
      v: pooled vectors, any shape.
      rounding: "half_even" as in the released code, "floor" for floor(x + 1/2) as in the paper.

    Returns:
      float32 integers in [-127, 127], in the shape of `v`.

    Raises:
      BadInput: the rounding is unknown.
    """
    scaled = LEVELS * jnp.tanh(v.astype(jnp.float32))
    rounded = jnp.clip(_round(scaled, rounding), -LEVELS, LEVELS)
    # Not `scaled + stop_gradient(rounded - scaled)`: a rounding error in this sum would give no exact integer.
    return jax.lax.stop_gradient(rounded) + (scaled - jax.lax.stop_gradient(scaled))


def to_int8(v: jax.Array, rounding: Rounding = "half_even") -> jax.Array:
    """Returns the integers of `tanh_int8` as an int8 array."""
    return tanh_int8(v, rounding).astype(jnp.int8)


def to_binary(v: jax.Array) -> jax.Array:
    """Returns the signs of v as int8: +1 for v >= 0, otherwise -1."""
    return jnp.where(v >= 0, 1, -1).astype(jnp.int8)


def pack_bits(v: np.ndarray, bit_order: BitOrder = "big") -> np.ndarray:
    """Packs one bit per dimension, 1 for v >= 0, eight to a byte.

    Args:
      v: [..., D] with D a multiple of 8.
      bit_order: "big" puts dimension 0 into the most significant bit (`ubinary` of sentence-transformers), "little"
        into the least significant bit (the hosted API).

    Returns:
      uint8 [..., D / 8].

    Raises:
      BadInput: D is not a multiple of 8, or the bit order is unknown.
    """
    v = np.asarray(v)
    if v.shape[-1] % 8:
        raise BadInput(f"pack_bits: {v.shape[-1]} dimensions do not fill whole bytes; use a multiple of 8")
    return np.packbits(v >= 0, axis=-1, bitorder=_bit_order(bit_order))


def unpack_bits(packed: np.ndarray, bit_order: BitOrder = "big") -> np.ndarray:
    """Inverts `pack_bits`: returns int8 -1 or +1, [..., 8 * bytes]."""
    bits = np.unpackbits(np.asarray(packed, np.uint8), axis=-1, bitorder=_bit_order(bit_order))
    return bits.astype(np.int8) * 2 - 1


def _bit_order(bit_order: str) -> BitOrder:
    if bit_order not in get_args(BitOrder):
        raise BadInput(f"bit_order={bit_order!r} is not one of {', '.join(get_args(BitOrder))}")
    return bit_order  # type: ignore[return-value]


def quantize(v: np.ndarray, quantization: Quantization, bit_order: BitOrder = "big") -> np.ndarray:
    """Quantizes pooled vectors `v` [..., D] as `Embedder.encode` returns them.

    Returns:
      For "int8", int8 [..., D]; for "binary", int8 -1 or +1 [..., D]; for "ubinary", uint8 [..., D / 8];
      for "tanh" and "none", float32 [..., D].

    Raises:
      BadInput: the quantization is unknown.
    """
    match quantization:
        case "int8":
            return _elementwise(_int8_of, v, np.int8)
        case "binary":
            return _elementwise(_binary_of, v, np.int8)
        case "ubinary":
            return pack_bits(v, bit_order)
        case "tanh":
            return _elementwise(_tanh_of, v, np.float32)
        case "none":
            return np.asarray(v, np.float32)
    raise BadInput(f"quantization={quantization!r} is not one of {', '.join(get_args(Quantization))}")


def zero_rows(v: np.ndarray) -> np.ndarray:
    """Returns bool [N], which pooled vectors [N, D] are zero: those of empty texts, which match nothing."""
    return np.logical_not(np.any(v, axis=1))


def check_form(quantization: str, dims: int | None, width: int, bit_order: str = "big") -> None:
    """Checks that embeddings of `width` dimensions can have this form, before any is computed.

    Raises:
      BadInput: `dims` is not an integer from 1 to `width`, or as for `quantize`.
    """
    whole = isinstance(dims, int | np.integer) and not isinstance(dims, bool)
    if dims is not None and not (whole and 0 < dims <= width):
        raise BadInput(f"dims={dims!r} of a model of {width} dimensions; set it to 1 to {width}")
    quantize(np.zeros((0, dims or width), np.float32), quantization, bit_order)  # type: ignore[arg-type]


_int8_of, _binary_of, _tanh_of = jax.jit(to_int8), jax.jit(to_binary), jax.jit(jnp.tanh)


def _elementwise(function: Callable[[jax.Array], jax.Array], v: np.ndarray, dtype: type) -> np.ndarray:
    """Applies `function` to blocks of a few different sizes, because each new size needs a compilation."""
    flat = np.ascontiguousarray(v, np.float32).reshape(-1)
    result = np.empty(flat.shape, dtype)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        padded = np.zeros(max(1 << (len(block) - 1).bit_length(), 1), np.float32)
        padded[: len(block)] = block
        result[start : start + len(block)] = np.asarray(function(jnp.asarray(padded)))[: len(block)]
    return result.reshape(v.shape)
