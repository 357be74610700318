"""The one matrix product of the encoder: activations' precision in, float32 accumulation, both ways."""

import jax
import jax.numpy as jnp


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` with the kernel kept in its own (float32) precision and cast to the activations'.

    Autodiff would hand the backward products a float32 cotangent beside bfloat16 operands, which is slow on
    matrix units. Here the cotangent keeps the activations' precision, while the kernel's gradient is accumulated
    and returned in the kernel's own precision.

    Args:
      x: [..., in], float32 or bfloat16.
      kernel: [in, out].

    Returns:
      [..., out] in the dtype of `x`.
    """
    flat = x.reshape(-1, x.shape[-1])
    return _product(flat, kernel.astype(x.dtype), 1, 0).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _project_forward(x, kernel):
    return project(x, kernel), (x, kernel)


def _project_backward(residual, cotangent):
    x, kernel = residual
    flat = x.reshape(-1, x.shape[-1])
    flat_cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    x_gradient = _product(flat_cotangent, kernel.astype(x.dtype), 1, 1).astype(x.dtype).reshape(x.shape)
    return x_gradient, _product(flat, flat_cotangent, 0, 0).astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)
