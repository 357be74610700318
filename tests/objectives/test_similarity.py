"""Cosine similarity against float64, with the zero vectors that padding rows produce."""

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.objectives import similarity


def reference(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    out = np.zeros((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            norms = np.sqrt((x * x).sum()) * np.sqrt((y * y).sum())
            out[i, j] = (x * y).sum() / norms if norms else 0.0
    return out


def test_by_hand():
    a = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    b = jnp.asarray([[4.0, 3.0], [-5.0, 0.0], [0.0, 0.0]])
    # (3, 4)/5 . (4, 3)/5 = 24/25 = 0.96; (3, 4)/5 . (-1, 0) = -0.6; (0, 1) . (0.8, 0.6) = 0.6; zero vector 0.
    out = similarity.cosine_similarity(a, b)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, [[0.96, -0.6, 0.0], [0.6, 0.0, 0.0]], atol=1e-6)
    # Control: the plain dot product is 24, -15, ...
    assert not np.allclose(a @ b.T, out)


def test_against_float64_for_quantized_and_tiny_vectors():
    generator = np.random.default_rng(0)
    a = np.rint(generator.normal(size=(5, 24)) * 40).astype(np.float32)
    b = generator.normal(size=(7, 24)).astype(np.float32)
    for scale in (1.0, 1e-4, 1e4):
        out = np.asarray(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(b * np.float32(scale))))
        np.testing.assert_allclose(out, reference(a, b), atol=2e-6)
    own = np.asarray(similarity.cosine_similarity(jnp.asarray(a), jnp.asarray(a)))
    np.testing.assert_allclose(np.diag(own), 1.0, atol=1e-6)


def test_half_precision_vectors_are_compared_in_float32():
    generator = np.random.default_rng(1)
    a = jnp.asarray(generator.normal(size=(4, 64)), jnp.bfloat16)
    b = jnp.asarray(generator.normal(size=(3, 64)), jnp.bfloat16)
    out = similarity.cosine_similarity(a, b)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(a, b), atol=1e-5)


def test_gradient_by_formula_and_finite_at_zero():
    generator = np.random.default_rng(2)
    a = generator.normal(size=(3, 6)).astype(np.float32)
    b = generator.normal(size=(4, 6)).astype(np.float32)
    a[1] = 0
    b[2] = 0
    weights = generator.normal(size=(3, 4)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x, y: (similarity.cosine_similarity(x, y) * weights).sum(), argnums=(0, 1)))(
        a, b
    )
    for part in gradient:
        assert np.isfinite(np.asarray(part)).all()
    # Central differences of the float64 reference, on the vectors that are not zero.
    step = 1e-6
    for position, values in enumerate((a, b)):
        for index in np.ndindex(values.shape):
            if not values[index[0]].any():
                continue
            ends = []
            for sign in (1, -1):
                moved = [a.astype(np.float64), b.astype(np.float64)]
                moved[position][index] += sign * step
                ends.append((reference(*moved) * weights).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(gradient[position][index], slope, atol=1e-5)
