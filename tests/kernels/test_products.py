"""Products of matrices against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.kernels import products


@pytest.mark.parametrize("implementation", ["_over_rows", "_over_rows_on_matrix_units"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_over_rows_sums_in_float32(implementation, dtype):
    generator = np.random.default_rng(0)
    a, b = (jnp.asarray(generator.normal(size=(300, width)), dtype) for width in (24, 40))
    expected = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    found = jax.jit(getattr(products, implementation))(a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # A sum in bfloat16 would be outside of these bounds.
    rounded = np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64)
    assert np.abs(rounded - expected).max() > 1e-2


def test_product_over_rows_keeps_nan():
    a = jnp.full((4, 2), jnp.nan, jnp.bfloat16)
    assert np.isnan(jax.jit(products._over_rows_on_matrix_units)(a, jnp.ones((4, 3), jnp.bfloat16))).all()
