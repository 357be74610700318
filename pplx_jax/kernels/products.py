"""Matrix products in float32. Inputs in float32 keep their full precision on every device."""

import jax
import jax.numpy as jnp

_NN, _NT = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Precision of products of this dtype. By default a TPU rounds float32 to bfloat16, and a GPU to TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dot_general(a: jax.Array, b: jax.Array, dims: jax.lax.DotDimensionNumbers) -> jax.Array:
    """`jax.lax.dot_general` in float32, with the precision of the dtype of `b`."""
    return jax.lax.dot_general(a, b, dims, precision=precision(b.dtype), preferred_element_type=jnp.float32)


def product(a: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """a @ b, or a @ b.T, in float32."""
    return dot_general(a, b, _NT if transposed else _NN)
