"""Products of float32 are exact on every device; of bfloat16 they are what the device makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.kernels import products
from pplx_jax.kernels.attention import blockwise, reference
from pplx_jax.kernels.segment_pool.reference import mean_pool
from pplx_jax.kernels.vocab_cross_entropy import chunked
from pplx_jax.models.linear import project

IDS = jnp.ones((1, 8), jnp.int32)


def attend(attention):
    return lambda x: attention(*(x.reshape(1, 8, 1, 16),) * 3, IDS)


OPERATIONS = {
    "attention": attend(reference.attention),
    "attention, blockwise": attend(blockwise.attention),
    "project": lambda x: jax.grad(lambda a, b: project(a, b).astype(jnp.float32).sum(), argnums=(0, 1))(x, x.T),
    "segment_pool": lambda x: mean_pool(x[None], IDS, 2),
    "vocab_cross_entropy": lambda x: chunked.losses(x, x, IDS[0], jnp.ones(8), with_gradient=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_xla_multiplies_float32_exactly_on_a_gpu_too(name):
    def precisions(dtype):
        lowered = jax.jit(OPERATIONS[name]).trace(jnp.ones((8, 16), dtype)).lower(lowering_platforms=("cuda",))
        lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        return {"HIGHEST, HIGHEST" in line for line in lines}

    assert precisions(jnp.float32) == {True}
    assert precisions(jnp.bfloat16) == {False}


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
