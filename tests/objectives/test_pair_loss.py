"""The pair loss against numbers by hand and a float64 loop over the paper's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_references import N, assert_differs, assert_matches, leaves_of, pair_reference, pairs

from pplx_jax.objectives import contrastive as losses
from pplx_jax.objectives.similarity import normalize

pair_loss = jax.jit(losses.pair_loss)


def test_pair_by_hand():
    query = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    document = jnp.asarray([[0.6, 0.8], [0.8, -0.6]])
    # s(q0,d0) = .6, s(q0,d1) = .8 > .6 + .1: masked; s(q0,q1) = 0 stays.
    #   L0 = ln(1 + e^((0 - .6)/.5)) = ln(1 + e^-1.2) = ln 1.3011942 = 0.2632825.
    # s(q1,d1) = -.6; s(q1,d0) = .8 and s(q1,q0) = 0 are both above -.5: masked. L1 = 0. Mean 0.1316412.
    loss, metrics = pair_loss(query, document, temperature=0.5)
    np.testing.assert_allclose(loss, 0.13164123, rtol=1e-5)
    assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())


@pytest.mark.parametrize("similarity,first", [(0.599, 0.9504378), (0.601, 0.3132617)])
def test_pair_margin_for_documents(similarity, first):
    rest = np.sqrt(1 - similarity**2)
    query = jnp.asarray([[1, 0, 0], [0, 0, -1.0]])
    document = jnp.asarray([[0.5, np.sqrt(0.75), 0], [similarity, 0, rest]])
    # s(q0,d0) = .5, so the mask falls above .6. s(q0,q1) = 0 stays: e^((0 - .5)/.5) = e^-1 = .3678794.
    #   d1 at .599: + e^(.099/.5) = e^.198 = 1.2189624; ln 2.5868418 = 0.9504378.
    #   d1 at .601 is masked: ln 1.3678794 = 0.3132617.
    # s(q1,d1) = -.8; s(q1,d0) = 0 and s(q1,q0) = 0 are above -.7: L1 = 0.
    loss, _ = pair_loss(query, document, temperature=0.5)
    np.testing.assert_allclose(loss, first / 2, rtol=1e-5)


@pytest.mark.parametrize("similarity,first", [(0.599, 0.8458629), (0.601, 0.1048840)])
def test_pair_margin_for_queries(similarity, first):
    rest = np.sqrt(1 - similarity**2)
    query = jnp.asarray([[1, 0, 0], [similarity, 0, rest]])
    document = jnp.asarray([[0.5, np.sqrt(0.75), 0], [-similarity, 0, -rest]])
    # s(q0,d0) = .5. s(q0,d1) = -.599 stays: e^(-1.099/.5) = e^-2.198 = .1110249 (.601: e^-2.202 = .1105817).
    #   q1 at .599: + e^.198 = 1.2189624; ln 2.3299873 = 0.8458629.
    #   q1 at .601 is masked: ln 1.1105817 = 0.1048840.
    # s(q1,d1) = -1; s(q1,d0) ~ .3 and s(q1,q0) ~ .6 are above -.9: L1 = 0.
    loss, _ = pair_loss(query, document, temperature=0.5)
    np.testing.assert_allclose(loss, first / 2, rtol=1e-5)


def test_pair_margin_is_an_argument():
    query = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    document = jnp.asarray([[0.6, 0.8], [0.8, -0.6]])
    # Margin .3 keeps s(q0,d1) = .8 <= .9: L0 = ln(1 + e^.4 + e^-1.2) = ln 2.7930189 = 1.0271230; L1 stays 0.
    loss, _ = pair_loss(query, document, temperature=0.5, margin=0.3)
    np.testing.assert_allclose(loss, 1.0271230 / 2, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_pair_against_float64(temperature):
    arrays = pairs()
    reference = functools.partial(pair_reference, temperature=temperature)
    value = assert_matches(functools.partial(losses.pair_loss, temperature=temperature), reference, arrays)
    assert_differs(value, functools.partial(reference, query_query=False), arrays)
    assert_differs(value, functools.partial(reference, masked=False), arrays)
    assert_differs(value, functools.partial(reference, document_document=True), arrays)
    assert_differs(value, functools.partial(reference, both_ways=True), arrays)
    assert_differs(value, functools.partial(pair_reference, temperature=2 * temperature), arrays)


def test_pair_without_query_negatives():
    reference = functools.partial(pair_reference, temperature=0.1)
    loss = functools.partial(losses.pair_loss, temperature=0.1, query_negatives=False)
    value = assert_matches(loss, functools.partial(reference, query_query=False), pairs())
    assert_differs(value, reference, pairs())
    _, metrics = jax.jit(loss)(*pairs())
    # Documents alone are counted: a mask of all of them is a share of 1.
    _, nothing = jax.jit(functools.partial(loss, margin=-2.0))(*pairs())
    assert float(nothing["masked_negatives"]) == 1.0 > float(metrics["masked_negatives"]) > 0


def test_pair_defaults_are_the_papers():
    query, document = pairs()
    default, _ = pair_loss(query, document)
    explicit, _ = pair_loss(query, document, temperature=0.02, margin=0.1)
    # Compiled, a default is a constant and an argument is not: they are rounded alike but for the last bit.
    np.testing.assert_allclose(default, explicit, rtol=3e-7)
    assert abs(float(pair_loss(query, document, temperature=0.021, margin=0.1)[0]) - float(default)) > 1e-3


def test_pair_with_copies_of_a_document():
    query, document = pairs(seed=4)
    document[3] = document[0]
    hashes = np.array([5, 9, 2, 5, -7, 0], np.int32)
    reference = functools.partial(pair_reference, temperature=0.1, document_hash=hashes)
    value = assert_matches(
        functools.partial(losses.pair_loss, temperature=0.1, document_hash=jnp.asarray(hashes)),
        reference,
        (query, document),
    )
    # Control: without the hashes a copy stands against its original.
    assert_differs(value, functools.partial(pair_reference, temperature=0.1), (query, document))


def test_a_copy_costs_ln_2_only_without_its_hash():
    # Both queries are e1, both documents e1 as well: s = 1 everywhere; query-query stays in the denominator.
    query = document = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    loss, _ = pair_loss(query, document)  # terms: positive, d, q: ln 3
    np.testing.assert_allclose(loss, 1.0986123, rtol=1e-5)
    loss, _ = pair_loss(query, document, document_hash=jnp.asarray([4, 4]))  # positive, q: ln 2
    np.testing.assert_allclose(loss, 0.6931472, rtol=1e-5)


def test_pair_rows_that_are_not_valid_have_no_part():
    query, document = pairs(seed=8)
    valid = np.array([1, 1, 0, 1, 1, 0], bool)
    query[2] = document[2] = 0  # as an empty slot leaves them
    reference = functools.partial(pair_reference, temperature=0.1, valid=valid)
    function = jax.jit(
        jax.value_and_grad(
            lambda q, d: losses.pair_loss(q, d, temperature=0.1, valid=jnp.asarray(valid))[0], argnums=(0, 1)
        )
    )
    value, gradient = function(query, document)
    leaves = leaves_of(query, document)
    expected = reference(*leaves)
    expected.backward()
    np.testing.assert_allclose(float(value), expected.item(), rtol=2e-5)
    for part, leaf in zip(gradient, leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(part)[~valid], 0.0)
        np.testing.assert_allclose(np.asarray(part)[valid], leaf.grad.numpy()[valid], rtol=1e-3, atol=1e-6)
    other_query, other_document = query.copy(), document.copy()
    other_query[5], other_document[5] = 3, -4
    assert float(function(other_query, other_document)[0]) == float(value)
    other_query[0] = 3  # control: a valid row counts
    assert float(function(other_query, other_document)[0]) != float(value)


def test_pair_with_no_valid_row():
    query, document = pairs()
    nothing = jnp.zeros(N, bool)
    value, gradient = jax.value_and_grad(lambda q: pair_loss(q, document, valid=nothing)[0])(query)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_pair_does_not_see_the_length_of_a_vector():
    query, document = pairs()
    value, _ = pair_loss(query, document, temperature=0.1)
    stretched = query * np.linspace(0.5, 3, N, dtype=np.float32)[:, None]
    np.testing.assert_allclose(pair_loss(stretched, 2 * document, temperature=0.1)[0], value, rtol=1e-4)


def test_integers_with_a_rounding_error_are_sent_as_those_integers():
    integers = jnp.asarray([[13.0, -7.0, 127.0, 0.0]])
    sent, factor = losses.compact(integers - jnp.asarray([[2e-6, -2e-6, 8e-6, 0.0]]), True)
    assert sent.dtype == jnp.int8
    np.testing.assert_array_equal(sent, integers)
    np.testing.assert_array_equal(sent * factor[:, None], normalize(integers))
    assert losses.compact(integers, False) is None
