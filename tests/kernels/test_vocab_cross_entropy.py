"""Cross-entropy over the vocabulary in pieces: value, gradients, and that the logits never exist whole."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy


def loss_alone(*arguments):
    return vocab_cross_entropy(*arguments)[0]


compiled = jax.jit(jax.value_and_grad(loss_alone, argnums=(0, 1)))
both = jax.jit(vocab_cross_entropy)


def case(tokens, width, vocabulary, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    hidden = (scale * generator.normal(size=(tokens, width))).astype(np.float32)
    embedding = generator.normal(size=(vocabulary, width)).astype(np.float32)
    targets = generator.integers(0, vocabulary, tokens).astype(np.int32)
    weights = (generator.uniform(0.1, 5, tokens) * (generator.random(tokens) < 0.7)).astype(np.float32)
    return hidden, embedding, targets, weights


def reference(hidden, embedding, targets, weights):
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (hidden, embedding)]
    logits = leaves[0] @ leaves[1].T
    entropy = torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(targets, np.int64)), reduction="none")
    loss = (entropy * torch.tensor(np.asarray(weights, np.float64))).sum()
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


def close(actual, expected, tolerance):
    """Largest difference, relative to the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    return np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


def test_by_hand():
    hidden = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    embedding = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    # Row 0: logits 0, 0, 0: ln 3 = 1.0986123. Row 1: logits 1, 0, 2, target 0:
    # ln(e^1 + e^0 + e^2) - 1 = ln(2.7182818 + 1 + 7.3890561) - 1 = 2.4076060 - 1 = 1.4076060. Row 2: none.
    # 2 x 1.0986123 + 0.5 x 1.4076060 = 2.1972246 + 0.7038030 = 2.9010276.
    loss, each = vocab_cross_entropy(hidden, embedding, jnp.asarray([1, 0, 2]), jnp.asarray([2.0, 0.5, 0.0]))
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, 2.9010276, rtol=1e-6)
    assert each.dtype == jnp.float32
    np.testing.assert_allclose(each, [1.0986123, 1.4076060, 0.0], rtol=1e-6)


# One token, sizes that divide nothing, more tokens than a small piece, a vocabulary with an odd factor.
@pytest.mark.parametrize("tokens,width,vocabulary", [(1, 4, 3), (37, 8, 97), (700, 16, 2374)])
def test_value_and_gradients_against_torch(tokens, width, vocabulary):
    arguments = case(tokens, width, vocabulary)
    loss, gradients = compiled(*arguments)
    expected, expected_gradients = reference(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert actual.shape == exact.shape
        assert close(actual, exact, 1e-5)
    # Weight zero: no gradient, to the last bit.
    np.testing.assert_array_equal(np.asarray(gradients[0])[arguments[3] == 0], 0.0)


@pytest.mark.parametrize("tokens,width,vocabulary", [(37, 8, 97), (700, 16, 2374)])
def test_each_position(tokens, width, vocabulary):
    hidden, embedding, targets, weights = case(tokens, width, vocabulary)
    loss, each = both(hidden, embedding, targets, weights)
    logits = torch.tensor(hidden, dtype=torch.float64) @ torch.tensor(embedding, dtype=torch.float64).T
    exact = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long(), reduction="none").numpy()
    np.testing.assert_allclose(each, np.where(weights != 0, exact, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(each)[weights == 0], 0.0)
    # The loss without and with a gradient is one number.
    np.testing.assert_allclose(loss, compiled(hidden, embedding, targets, weights)[0], rtol=1e-6)


def test_the_values_of_positions_carry_no_gradient():
    hidden, embedding, targets, weights = case(37, 8, 97)
    gradient = jax.jit(jax.grad(lambda *arguments: vocab_cross_entropy(*arguments)[1].sum(), argnums=(0, 1)))
    for part in gradient(hidden, embedding, targets, weights):
        np.testing.assert_array_equal(part, 0.0)


def test_numpy_arrays_are_taken_with_and_without_a_gradient():
    arguments = case(37, 8, 97)
    assert all(type(argument) is np.ndarray for argument in arguments)
    expected, expected_gradients = compiled(*arguments)
    np.testing.assert_allclose(vocab_cross_entropy(*arguments)[0], expected, rtol=1e-6)
    loss, gradients = jax.value_and_grad(loss_alone, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert close(actual, exact, 1e-6)


def test_weights_of_any_arrangement():
    # Few positions with a weight, at the ends and in between, in more than one piece of the positions.
    hidden, embedding, targets, weights = case(2500, 8, 97)
    sparse = np.zeros_like(weights)
    sparse[[0, 1023, 1024, 2048, 2499]] = [1.0, 2.0, 3.0, 4.0, 0.5]
    full = np.linspace(0.5, 2, 2500, dtype=np.float32)
    for chosen in (sparse, full):
        loss, gradients = compiled(hidden, embedding, targets, chosen)
        expected, expected_gradients = reference(hidden, embedding, targets, chosen)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for actual, exact in zip(gradients, expected_gradients, strict=True):
            assert close(actual, exact, 1e-5)


def test_controls_differ():
    hidden, embedding, targets, weights = case(37, 8, 97)
    loss = float(compiled(hidden, embedding, targets, weights)[0])
    assert abs(float(compiled(hidden, embedding, (targets + 1) % 97, weights)[0]) - loss) > 1e-2
    assert abs(float(compiled(hidden, embedding, targets, np.ones_like(weights))[0]) - loss) > 1e-2
    # A token of the last, ragged piece of the vocabulary is part of the sum.
    embedding[-1] = 10 * hidden[np.argmax(weights)]
    assert abs(float(compiled(hidden, embedding, targets, weights)[0]) - loss) > 1e-2


def test_large_logits_stay_finite():
    arguments = case(37, 8, 97, scale=3000.0)  # logits up to about 3e4, far past exp's range
    loss, gradients = compiled(*arguments)
    expected, expected_gradients = reference(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert close(actual, exact, 1e-3)


def test_all_weights_zero():
    hidden, embedding, targets, weights = case(37, 8, 97)
    loss, gradients = compiled(hidden, embedding, targets, np.zeros_like(weights))
    assert float(loss) == 0.0
    for part in gradients:
        np.testing.assert_array_equal(part, 0.0)


def test_gradient_scales_with_the_cotangent():
    arguments = case(37, 8, 97)
    tripled = jax.jit(jax.grad(lambda *a: 3.0 * loss_alone(*a), argnums=(0, 1)))(*arguments)
    _, expected = reference(*arguments)
    for actual, exact in zip(tripled, expected, strict=True):
        assert close(actual, 3 * exact, 1e-5)


def test_half_precision():
    hidden, embedding, targets, weights = case(37, 8, 97)
    halves = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(embedding, jnp.bfloat16)
    loss, gradients = compiled(*halves, targets, weights)
    assert loss.dtype == jnp.float32
    expected, expected_gradients = reference(*halves, targets, weights)
    np.testing.assert_allclose(loss, expected, rtol=5e-3)
    for actual, exact, half in zip(gradients, expected_gradients, halves, strict=True):
        assert actual.dtype == half.dtype
        assert close(actual, exact, 2e-2)


def jaxprs_below(value):
    """Every jaxpr nested in an equation's parameter."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from jaxprs_below(value.jaxpr)
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(jaxprs_below(part) for part in value)


def largest_array(jaxpr):
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, int(np.prod(getattr(variable.aval, "shape", ()), dtype=np.int64)))
        for parameter in equation.params.values():
            for inner in jaxprs_below(parameter):
                largest = max(largest, largest_array(inner))
    return largest


@functools.cache
def largest_array_of(function):
    tokens, width, vocabulary = 16384, 64, 151936
    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    jaxpr = jax.make_jaxpr(jax.value_and_grad(function, argnums=(0, 1)))(*shapes)
    return largest_array(jaxpr.jaxpr), tokens * vocabulary


def test_logits_are_never_whole():
    largest, whole = largest_array_of(loss_alone)
    assert largest <= whole // 8

    # Control: the walk does see whole logits where there are some.
    def plain(hidden, embedding, targets, weights):
        chosen = jax.nn.log_softmax(hidden @ embedding.T)[jnp.arange(len(targets)), targets]
        return -(chosen * weights).sum()

    largest, whole = largest_array_of(plain)
    assert largest >= whole
