"""The matrix product of the encoder: inputs in the precision of activations, sums in float32, forward and backward."""

import jax

from pplx_jax.kernels.products import product, product_over_rows


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel`, with a float32 kernel that is cast to the dtype of the activations.

    Autodiff would multiply a float32 cotangent by bfloat16 operands, which is slow on matrix units. Here the cotangent
    has the dtype of the activations, and the gradient of the kernel is accumulated and returned in the kernel's dtype.

    Args:
      x: [..., in], float32 or bfloat16.
      kernel: [in, out].

    Returns:
      [..., out] in the dtype of `x`.
    """
    flat = x.reshape(-1, x.shape[-1])
    return product(flat, kernel.astype(x.dtype)).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _project_forward(x, kernel):
    return project(x, kernel), (x, kernel)


def _project_backward(residual, cotangent):
    x, kernel = residual
    flat = x.reshape(-1, x.shape[-1])
    flat_cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    x_gradient = product(flat_cotangent, kernel.astype(x.dtype), transposed=True).astype(x.dtype).reshape(x.shape)
    return x_gradient, product_over_rows(flat, flat_cotangent).astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)
