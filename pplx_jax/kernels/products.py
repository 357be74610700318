"""Products in float32: exact where what is multiplied is float32, whatever a device would make of that by itself."""

import jax
import jax.numpy as jnp

_NN, _NT = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Of products of arrays of this dtype: a TPU would round float32 to bfloat16, a GPU to TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dot_general(a: jax.Array, b: jax.Array, dims: jax.lax.DotDimensionNumbers) -> jax.Array:
    """`jax.lax.dot_general` in float32, as exact as `b` is."""
    return jax.lax.dot_general(a, b, dims, precision=precision(b.dtype), preferred_element_type=jnp.float32)


def product(a: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """a @ b, or a @ b.T, in float32."""
    return dot_general(a, b, _NT if transposed else _NN)
