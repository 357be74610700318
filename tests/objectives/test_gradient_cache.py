"""The gradient cache: the gradient of the whole batch in every parameter, at the memory of a microbatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.objectives.contrastive import triplet_loss
from pplx_jax.objectives.gradient_cache import encode_in_microbatches

ROWS, INPUTS, HIDDEN, WIDTH = 16, 6, 32, 8


def parameters():
    generator = np.random.default_rng(0)
    shapes = {"first": (INPUTS, HIDDEN), "second": (HIDDEN, WIDTH), "unused": (3,)}
    return {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def rows(count=ROWS):
    """Each row holds a query, its document and a hard negative."""
    generator = np.random.default_rng(1)
    return {"x": jnp.asarray(generator.normal(size=(count, 3, INPUTS)), jnp.float32)}


def encode(params, batch):
    embeddings = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
    return {"all": embeddings, "norm": jnp.sum(embeddings**2, axis=(1, 2))}


def loss(embeddings):
    query, document, negative = jnp.moveaxis(embeddings["all"], 1, 0)
    # A second term that couples all rows through another output.
    return triplet_loss(query, document, negative[:, None], temperature=0.1)[0] + jnp.var(embeddings["norm"])


def cached(microbatches):
    return lambda params, batch: loss(encode_in_microbatches(encode, params, batch, microbatches))


@pytest.mark.parametrize("microbatches", [2, 4, 16])
def test_embeddings_come_back_in_the_order_of_their_rows(microbatches):
    expected = encode(parameters(), rows())
    found = encode_in_microbatches(encode, parameters(), rows(), microbatches)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("microbatches, compiled", [(1, True), (2, True), (4, True), (16, True), (4, False)])
def test_gradient_is_that_of_the_whole_batch_in_every_parameter(microbatches, compiled):
    function = jax.value_and_grad(cached(microbatches))
    value, gradient = (jax.jit(function) if compiled else function)(parameters(), rows())
    expected_value, expected = jax.value_and_grad(lambda params: loss(encode(params, rows())))(parameters())
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for name, part in expected.items():
        np.testing.assert_allclose(gradient[name], part, rtol=2e-5, atol=1e-6 * np.abs(part).max(), err_msg=name)
    assert not np.any(gradient["unused"])


@pytest.mark.slow
def test_microbatches_that_are_batches_of_their_own_have_another_gradient():
    # Control: what accumulating gradients would give, every query against the negatives of its own microbatch.
    def accumulated(params):
        parts = [{"x": rows()["x"][part::4]} for part in range(4)]
        return sum(loss(encode(params, part)) for part in parts) / 4

    exact = jax.grad(cached(4))(parameters(), rows())["first"]
    wrong = jax.grad(accumulated)(parameters())["first"]
    assert np.linalg.norm(wrong - exact) > 0.05 * np.linalg.norm(exact)


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences():
    direction = jax.tree.map(lambda part: np.random.default_rng(2).normal(size=part.shape), parameters())
    with jax.enable_x64(True):
        params = jax.tree.map(lambda part: jnp.asarray(part, jnp.float64), parameters())
        batch = jax.tree.map(lambda part: jnp.asarray(part, jnp.float64), rows())

        # float64 all through: the losses compute in float32, so this takes one of its own.
        def coupled(params):
            embeddings = encode_in_microbatches(encode, params, batch, 4)["all"].reshape(-1, WIDTH)
            return jnp.mean(jax.nn.logsumexp(embeddings @ embeddings.T, axis=1))

        step = 1e-6
        ahead, behind = (
            coupled(jax.tree.map(lambda part, way, sign=sign: part + sign * step * way, params, direction))
            for sign in (1, -1)
        )
        slope = jax.tree.map(lambda part, way: jnp.sum(part * way), jax.grad(coupled)(params), direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slope)), (ahead - behind) / (2 * step), rtol=1e-6)


def test_memory_does_not_grow_with_the_batch_beyond_the_embeddings():
    hidden = 2048  # activations of a row are far larger than its embedding

    def temporary_bytes(count, microbatches):
        params = {
            "first": jax.ShapeDtypeStruct((INPUTS, hidden), jnp.float32),
            "second": jax.ShapeDtypeStruct((hidden, WIDTH), jnp.float32),
        }
        batch = {"x": jax.ShapeDtypeStruct((count, 3, INPUTS), jnp.float32)}

        def total(params, batch):
            return jnp.sum(encode_in_microbatches(encode, params, batch, microbatches)["all"] ** 2)

        compiled = jax.jit(jax.grad(total)).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 3 * hidden * 4  # bytes a row
    embeddings = 3 * WIDTH * 4
    small, large = temporary_bytes(64, 4), temporary_bytes(1024, 64)
    assert large - small < 960 * 8 * embeddings < 0.1 * 960 * activations
    # Control: without microbatches it grows by the activations.
    assert temporary_bytes(1024, 1) - temporary_bytes(64, 1) > 0.9 * 960 * activations


@pytest.mark.parametrize("microbatches", [0, -1, 3, 32])
def test_microbatches_that_do_not_divide_the_rows_are_refused(microbatches):
    with pytest.raises(BadInput, match=f"16 sequences cannot be encoded in {microbatches} equal microbatches"):
        encode_in_microbatches(encode, parameters(), rows(), microbatches)
