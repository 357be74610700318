"""Matryoshka: a weighted mean of the same loss over prefixes, and over nothing that was not listed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.core import errors
from pplx_jax.objectives import contrastive as losses
from pplx_jax.objectives import matryoshka

WIDTH = 8


def case():
    generator = np.random.default_rng(0)
    query, document = (generator.normal(size=(4, WIDTH)).astype(np.float32) for _ in range(2))
    return query, document, generator.normal(size=(4, 2, WIDTH)).astype(np.float32)


def first_coordinates(a, b):
    """A loss whose value tells which prefix it saw."""
    return (a.sum() + 10 * b.sum()).astype(jnp.float32), {"seen": jnp.float32(a.shape[-1])}


def test_by_hand():
    a, b = jnp.asarray([[1.0, 2, 3, 4]]), jnp.asarray([[[1.0, 1, 1, 1]]])
    # Prefix 2: 1 + 2 + 10 x 2 = 23. Prefix 4: 10 + 40 = 50. Equal weights: 36.5.
    loss, _ = matryoshka.matryoshka(first_coordinates, (2, 4))(a, b)
    np.testing.assert_allclose(loss, 36.5, rtol=1e-6)
    # Weights 3 and 1: (3 x 23 + 50) / 4 = 29.75; only their ratio counts.
    for weights in ((3.0, 1.0), (0.75, 0.25)):
        loss, _ = matryoshka.matryoshka(first_coordinates, (2, 4), weights)(a, b)
        np.testing.assert_allclose(loss, 29.75, rtol=1e-6)
    # The full width is there only when it is listed.
    loss, _ = matryoshka.matryoshka(first_coordinates, (2,))(a, b)
    np.testing.assert_allclose(loss, 23.0, rtol=1e-6)


@pytest.mark.parametrize("dims,weights", [((WIDTH,), None), ((2, 4, WIDTH), None), ((2, 4, WIDTH), (1.0, 2.0, 5.0))])
def test_contrastive_losses_on_prefixes(dims, weights):
    query, document, negatives = case()
    shares = np.array(weights or [1.0] * len(dims))
    shares = shares / shares.sum()
    for loss, arrays, settings in (
        (jax.jit(losses.pair_loss), (query, document), {"temperature": 0.1}),
        (jax.jit(losses.triplet_loss), (query, document, negatives), {"temperature": 0.1}),
    ):
        value, metrics = matryoshka.matryoshka(loss, dims, weights)(*arrays, **settings)
        parts = [float(loss(*[x[..., :d] for x in arrays], **settings)[0]) for d in dims]
        np.testing.assert_allclose(value, (shares * parts).sum(), rtol=1e-5)
        assert isinstance(metrics, dict)
        if len(dims) > 1:  # control: it is not the loss at full width alone
            assert abs(float(value) - parts[-1]) > 1e-3


def test_keywords_reach_the_loss_unsliced():
    query, document, _ = case()
    hashes = jnp.asarray([3, 3, 1, 2])
    pair_loss = jax.jit(losses.pair_loss)
    nested = matryoshka.matryoshka(pair_loss, (2, WIDTH))
    value, _ = nested(query, document, temperature=0.1, document_hash=hashes)
    loss = functools.partial(pair_loss, temperature=0.1, document_hash=hashes)
    expected = (loss(query[:, :2], document[:, :2])[0] + loss(query, document)[0]) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert abs(float(value) - float(nested(query, document, temperature=0.1)[0])) > 1e-3


def test_metrics_are_those_of_the_longest_prefix():
    def loss(x):
        total, metrics = first_coordinates(x, x[:, None])
        return total, metrics | {"loss_part": total, "seen": jnp.float32(x.shape[-1])}

    a = jnp.asarray([[1.0, 2, 3, 4]])
    for dims in ((2, 4), (4, 2)):
        _, metrics = matryoshka.matryoshka(loss, dims)(a)
        assert float(metrics["seen"]) == 4
        np.testing.assert_allclose(metrics["loss_part"], 110.0, rtol=1e-6)  # 10 + 10 x 10; of prefix 2: 33


def test_gradient_reaches_a_coordinate_through_each_prefix_that_holds_it():
    a, b = jnp.ones((1, 4)), jnp.ones((1, 1, 4))
    gradient = jax.grad(lambda x: matryoshka.matryoshka(first_coordinates, (1, 2))(x, b)[0])(a)
    # Coordinate 0 is in both prefixes, 1 in one of two, 2 and 3 in none.
    np.testing.assert_allclose(gradient, [[1.0, 0.5, 0.0, 0.0]], rtol=1e-6)


def test_a_prefix_wider_than_the_vectors_is_bad_input():
    query, document, _ = case()
    with pytest.raises(errors.BadInput, match="16"):  # slicing alone would pass it off as the full width
        matryoshka.matryoshka(losses.pair_loss, (4, 16))(query, document)


@pytest.mark.parametrize(
    ("dims", "weights"), [((2, 4), (1.0,)), ((-2, 4), None), ((0,), None), ((2, 4), (-1.0, 2.0)), ((), None)]
)
def test_prefixes_and_weights_that_make_no_sense_are_bad_input(dims, weights):
    with pytest.raises(errors.BadInput, match="matryoshka"):
        matryoshka.matryoshka(losses.pair_loss, dims, weights)
