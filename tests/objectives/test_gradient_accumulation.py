"""Sums over microbatches: value, metrics and gradient of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.objectives.gradient_accumulation import sum_in_microbatches

ROWS, INPUTS, WIDTH = 16, 6, 8
generator = np.random.default_rng(0)
PARAMS = {
    "first": jnp.asarray(generator.normal(size=(INPUTS, WIDTH)), jnp.float32),
    "unused": jnp.ones(3),
}
BATCH = {
    "x": jnp.asarray(generator.normal(size=(ROWS, INPUTS)), jnp.float32),
    "kept": jnp.asarray(generator.integers(0, 2, ROWS), jnp.int32),
}
COUNT = jnp.sum(BATCH["kept"]).astype(jnp.float32)


def terms(params, part):
    each = jnp.sum(jnp.tanh(part["x"] @ params["first"]) ** 2, axis=1) * part["kept"]
    return jnp.sum(each) / COUNT, {"examples": jnp.sum(part["kept"])}


def mean_of_means(params, part):
    """The mistake: each microbatch divides by its own count."""
    loss, metrics = terms(params, part)
    return loss * COUNT / jnp.maximum(jnp.sum(part["kept"]), 1), metrics


def graded(function, microbatches):
    def of(params):
        loss, metrics = sum_in_microbatches(function, params, BATCH, microbatches)
        return 3 * loss, metrics  # so that the incoming gradient is not 1

    return jax.jit(jax.value_and_grad(of, has_aux=True))(PARAMS)


@pytest.mark.parametrize("microbatches", [2, 4, 16])
def test_value_metrics_and_gradient_are_those_of_the_whole_batch(microbatches):
    (loss, metrics), gradient = graded(terms, microbatches)
    (expected, expected_metrics), exact = graded(terms, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics == expected_metrics == {"examples": int(COUNT)}
    scale = np.abs(exact["first"]).max()
    np.testing.assert_allclose(gradient["first"], exact["first"], rtol=1e-6, atol=1e-6 * scale)
    assert not np.any(gradient["unused"])
    wrong = graded(mean_of_means, microbatches)[1]["first"] / microbatches  # control
    assert np.abs(wrong - exact["first"]).max() > 0.01 * scale


def test_without_a_gradient_none_is_computed():
    def primal(params):
        return sum_in_microbatches(terms, params, BATCH, 4)[0]

    text = str(jax.make_jaxpr(primal)(PARAMS))
    assert text.count("dot_general") == 1 < str(jax.make_jaxpr(jax.grad(primal))(PARAMS)).count("dot_general")
    np.testing.assert_allclose(primal(PARAMS), terms(PARAMS, BATCH)[0], rtol=1e-6)


@pytest.mark.parametrize("microbatches", [0, 3, 32])
def test_microbatches_that_do_not_divide_the_sequences_are_refused(microbatches):
    with pytest.raises(BadInput, match=f"16 sequences cannot be encoded in {microbatches} equal microbatches"):
        sum_in_microbatches(terms, PARAMS, BATCH, microbatches)
