"""Matrix products in float32. Inputs in float32 keep their full precision on every device."""

import jax
import jax.numpy as jnp

from pplx_jax.kernels.platform import by_platform

_NN, _NT, _TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of products of a dtype. By default a TPU rounds float32 to bfloat16, a GPU to TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dot_general(a: jax.Array, b: jax.Array, dims: jax.lax.DotDimensionNumbers) -> jax.Array:
    """Returns `jax.lax.dot_general` in float32, with the precision of the dtype of `b`."""
    return jax.lax.dot_general(a, b, dims, precision=precision(b.dtype), preferred_element_type=jnp.float32)


def product(a: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """Returns a @ b, or a @ b.T, in float32."""
    return dot_general(a, b, _NT if transposed else _NN)


def product_over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a.T @ b, in float32: the gradient of a kernel from inputs a [T, I] and cotangents b [T, O]."""
    if b.dtype == jnp.bfloat16 and jax.device_count() == 1:
        return by_platform(a, b, default=_over_rows, cpu=_over_rows_on_matrix_units)
    return _over_rows(a, b)


def _over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    return dot_general(a, b, _TN)


def _over_rows_on_matrix_units(a: jax.Array, b: jax.Array) -> jax.Array:
    # XLA uses the matrix units (AMX) of a CPU only if the left operand is contracted over its last axis, and converts
    # to float32 otherwise. It also moves a transposition into the product, but not into a branch. Four times as fast.
    always = jax.lax.optimization_barrier(jnp.bool_(True))
    return jax.lax.cond(always, lambda _, transposed: product(transposed, b), lambda a, _: _over_rows(a, b), a, a.T)
