"""The contextual losses and the triplet loss against numbers by hand and float64 loops over the paper's formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.loss_references import (
    C,
    K,
    N,
    assert_differs,
    assert_matches,
    batch_reference,
    leaves_of,
    pair_reference,
    pairs,
    scalar,
    sequence_reference,
    triplet_reference,
    vectors,
)

from pplx_jax.objectives import contextual as losses
from pplx_jax.objectives.contrastive import pair_loss as unjitted_pair_loss
from pplx_jax.objectives.contrastive import triplet_loss as unjitted_triplet_loss

pair_loss = jax.jit(unjitted_pair_loss)
triplet_loss = jax.jit(unjitted_triplet_loss)
sequence_loss = jax.jit(losses.sequence_loss)
batch_loss = jax.jit(losses.batch_loss)
contextual_loss = jax.jit(losses.contextual_loss)


# Contextual losses


def contextual_case(seed=20):
    chunks = vectors(N, C, seed=seed)
    chunk_valid = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0]], bool)
    chunk = np.array([2, 0, 0, 1, 2, 1], np.int32)
    query = np.rint(0.6 * chunks[np.arange(N), chunk] + 0.8 * vectors(N, seed=seed + 1)).astype(np.float32)
    mean = (chunks * chunk_valid[..., None]).sum(1) / chunk_valid.sum(1)[:, None]
    document = np.rint(mean).astype(np.float32)
    return query, chunks, chunk_valid, chunk, document


def test_sequence_and_batch_by_hand():
    query = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    chunks = jnp.asarray([[[0.6, 0.8], [0.0, 1.0]], [[0.8, 0.6], [7.0, 7.0]]])
    chunk_valid = jnp.asarray([[True, True], [True, False]])
    chunk = jnp.asarray([0, 0])
    # Own chunks. q0: .6 against 0: ln(1 + e^-1.2) = 0.2632825; q1: one chunk, 0. Mean 0.1316412.
    loss = scalar(sequence_loss(query, chunks, chunk_valid, chunk, temperature=0.5))
    np.testing.assert_allclose(loss, 0.13164123, rtol=1e-5)
    # All chunks. q0: .6 against 0 and .8: ln(1 + e^-1.2 + e^.4) = ln 2.7930189 = 1.0271230.
    # q1: .6 against .8 and 1, the absent (7, 7) left out: ln(1 + e^.4 + e^.8) = ln 4.7173656 = 1.5512506.
    # Mean 1.2891868.
    loss = scalar(batch_loss(query, chunks, chunk_valid, chunk, temperature=0.5))
    np.testing.assert_allclose(loss, 1.2891868, rtol=1e-5)


@pytest.mark.parametrize("name", ["sequence_loss", "batch_loss"])
def test_chunk_losses_against_float64(name):
    query, chunks, chunk_valid, chunk, _ = contextual_case()
    references = {"sequence_loss": sequence_reference, "batch_loss": batch_reference}
    common = {"chunk_valid": chunk_valid, "chunk": chunk, "temperature": 0.1}
    reference = functools.partial(references.pop(name), **common)
    value = assert_matches(functools.partial(getattr(losses, name), **common), reference, (query, chunks))
    (other,) = references.values()
    assert_differs(value, functools.partial(other, **common), (query, chunks))
    everything = dict(common, chunk_valid=np.ones_like(chunk_valid))
    assert_differs(value, functools.partial(reference.func, **everything), (query, chunks))
    if name == "batch_loss":  # the other chunks of the own document stand in the denominator
        assert_differs(value, functools.partial(reference, own=False), (query, chunks))


@pytest.mark.parametrize("name", ["sequence_loss", "batch_loss"])
def test_further_positives_are_no_negatives_of_their_query(name):
    query, chunks, chunk_valid, chunk, _ = contextual_case()
    also_positive = np.zeros((N, C), bool)
    also_positive[[0, 1, 3], [1, 1, 2]] = True
    common = {"chunk_valid": chunk_valid, "chunk": chunk, "temperature": 0.1}
    reference = {"sequence_loss": sequence_reference, "batch_loss": batch_reference}[name]
    masked = functools.partial(reference, **common, also_positive=also_positive)
    loss = functools.partial(getattr(losses, name), **common, also_positive=also_positive)
    value = assert_matches(loss, masked, (query, chunks))
    assert_differs(value, functools.partial(reference, **common), (query, chunks))
    if name == "batch_loss":  # they stay negatives of the other queries
        nowhere = dict(common, chunk_valid=chunk_valid & ~also_positive)
        assert_differs(value, functools.partial(reference, **nowhere), (query, chunks))


def test_the_contextual_loss_leaves_further_positives_out_only_where_duplicates_are_masked():
    query, chunks, chunk_valid, chunk, document = contextual_case()
    also_positive = np.zeros((N, C), bool)
    also_positive[0, 1] = True

    def metrics_of(**options):
        hashes = np.arange(N, dtype=np.int32)
        loss = jax.jit(functools.partial(losses.contextual_loss, beta=0.3, temperature=0.5, **options))
        return loss(query, chunks, chunk_valid, chunk, document, hashes)[1]

    plain, masked = metrics_of(), metrics_of(also_positive=also_positive, mask_duplicates=True)
    ignored = metrics_of(also_positive=also_positive)
    for name in ("loss_sequence", "loss_batch"):
        assert ignored[name] == plain[name] > masked[name]
    assert masked["loss_global"] == plain["loss_global"]
    assert float(masked["duplicate_chunks"]) == pytest.approx(1 / N) and "duplicate_chunks" not in ignored


@pytest.mark.parametrize("name", ["sequence_loss", "batch_loss"])
def test_absent_chunks_have_no_part(name):
    query, chunks, chunk_valid, chunk, _ = contextual_case()
    function = jax.jit(
        jax.value_and_grad(lambda x: scalar(getattr(losses, name)(query, x, chunk_valid, chunk, temperature=0.02)))
    )
    values = []
    for filler in (0.0, -1.0, 300.0):
        value, gradient = function(np.where(chunk_valid[..., None], chunks, np.float32(filler)))
        assert np.isfinite(np.asarray(gradient)).all()
        np.testing.assert_array_equal(np.asarray(gradient)[~chunk_valid], 0.0)
        values.append(float(value))
    assert values[0] == values[1] == values[2]


def contextual(arrays, chunk_valid, chunk, hashes, **settings):
    query, chunks, document = arrays
    return contextual_loss(query, chunks, chunk_valid, chunk, document, hashes, **settings)


def contextual_reference(
    query, chunks, document, *, chunk_valid, chunk, hashes, beta, sequence_weight=0.2, temperature=0.1
):
    common = {"chunk_valid": chunk_valid, "chunk": chunk, "temperature": temperature}
    local = sequence_weight * sequence_reference(query, chunks, **common)
    local = local + (1 - sequence_weight) * batch_reference(query, chunks, **common)
    whole = pair_reference(query, document, temperature=temperature, document_hash=hashes)
    return beta * whole + (1 - beta) * local


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_contextual_against_float64(beta):
    query, chunks, chunk_valid, chunk, document = contextual_case()
    hashes = np.arange(N, dtype=np.int32)
    arrays = (query, chunks, document)
    settings = {"chunk_valid": chunk_valid, "chunk": chunk, "hashes": hashes}
    reference = functools.partial(contextual_reference, beta=beta, **settings)
    value = assert_matches(lambda *xs: contextual(xs, **settings, temperature=0.1, beta=beta), reference, arrays)
    assert_differs(value, functools.partial(reference, beta=1 - beta if beta != 0.5 else 0.2), arrays)
    assert_differs(value, functools.partial(reference, sequence_weight=0.8), arrays)


def test_contextual_ends_are_its_two_parts():
    query, chunks, chunk_valid, chunk, document = contextual_case()
    hashes = np.arange(N, dtype=np.int32)
    run = functools.partial(contextual, (query, chunks, document), chunk_valid, chunk, hashes, temperature=0.1)
    whole, _ = pair_loss(query, document, temperature=0.1, document_hash=jnp.asarray(hashes))
    np.testing.assert_allclose(run(beta=1.0, sequence_weight=0.2)[0], whole, rtol=1e-5)
    parts = (query, chunks, chunk_valid, chunk)
    sequence = float(scalar(sequence_loss(*parts, temperature=0.1)))
    batch = float(scalar(batch_loss(*parts, temperature=0.1)))
    assert abs(sequence - batch) > 1e-2
    np.testing.assert_allclose(run(beta=0.0, sequence_weight=0.2)[0], 0.2 * sequence + 0.8 * batch, rtol=1e-5)
    np.testing.assert_allclose(run(beta=0.0, sequence_weight=1.0)[0], sequence, rtol=1e-5)
    np.testing.assert_allclose(run(beta=0.0, sequence_weight=0.0)[0], batch, rtol=1e-5)


def test_contextual_masks_copies_of_a_document():
    query, chunks, chunk_valid, chunk, document = contextual_case()
    chunks[3], chunk_valid[3], document[3] = chunks[0], chunk_valid[0], document[0]
    hashes = np.array([8, 1, 2, 8, 3, 4], np.int32)
    arrays = (query, chunks, document)
    settings = {"chunk_valid": chunk_valid, "chunk": chunk, "hashes": hashes}
    reference = functools.partial(contextual_reference, beta=0.5, **settings)
    value = assert_matches(lambda *xs: contextual(xs, **settings, temperature=0.1, beta=0.5), reference, arrays)
    apart = dict(settings, hashes=np.arange(N))
    assert_differs(value, functools.partial(contextual_reference, beta=0.5, **apart), arrays)


def test_contextual_takes_beta_from_a_schedule():
    query, chunks, chunk_valid, chunk, document = contextual_case()
    hashes = np.arange(N, dtype=np.int32)
    function = jax.jit(  # beta as a traced number: one compilation for the whole run
        lambda beta: contextual((query, chunks, document), chunk_valid, chunk, hashes, temperature=0.1, beta=beta)[0]
    )
    low, middle, high = (float(function(beta)) for beta in (0.2, 0.35, 0.5))
    np.testing.assert_allclose(middle, (low + high) / 2, rtol=1e-5)  # linear in beta
    assert low != high


# Triplet loss


def triplet_case(seed=30):
    query, document = pairs(seed)
    return query, document, vectors(N, K, seed=seed + 2)


def test_triplet_by_hand():
    query = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    document = jnp.asarray([[0.6, 0.8], [0.8, -0.6]])
    negatives = jnp.asarray([[[0.0, 1.0]], [[-1.0, 0.0]]])
    # q0: positive .6; d1 .8, own negative 0, the other query's negative -1:
    #   ln(1 + e^.4 + e^-1.2 + e^-3.2) = ln 2.8337811 = 1.0416119. No mask: .8 > .7 stays.
    # q1: positive -.6; d0 .8, the other query's negative 1, own negative 0:
    #   ln(1 + e^2.8 + e^3.2 + e^1.2) = ln 45.2972938 = 3.8132473. Mean 2.4274296.
    loss, metrics = triplet_loss(query, document, negatives, temperature=0.5)
    np.testing.assert_allclose(loss, 2.4274296, rtol=1e-5)
    assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())


@pytest.mark.parametrize("temperature", [0.03, 0.1])
def test_triplet_against_float64(temperature):
    arrays = triplet_case()
    reference = functools.partial(triplet_reference, temperature=temperature)
    value = assert_matches(functools.partial(unjitted_triplet_loss, temperature=temperature), reference, arrays)
    assert_differs(value, functools.partial(reference, own_only=True), arrays)
    assert_differs(value, functools.partial(reference, masked=True), arrays)
    assert_differs(value, functools.partial(reference, query_query=True), arrays)


def test_triplet_default_temperature():
    arrays = triplet_case()
    default, explicit = triplet_loss(*arrays), triplet_loss(*arrays, temperature=0.03)
    # Compiled, a default is a constant and an argument is not: they are rounded alike but for the last bit.
    np.testing.assert_allclose(default[0], explicit[0], rtol=3e-7)
    assert abs(float(triplet_loss(*arrays, temperature=0.031)[0]) - float(default[0])) > 1e-3


def test_every_negative_stands_in_every_denominator():
    query, document, negatives = triplet_case()
    function = jax.jit(lambda n: triplet_loss(query, document, n, temperature=0.1)[0])
    base = float(function(negatives))
    leaves = [leaf.detach() for leaf in leaves_of(query, document)]
    for owner in range(N):
        for place in range(K):
            moved = negatives.copy()
            moved[owner, place] = query[(owner + 1) % N]  # next to a query that does not own it
            value = float(function(moved))
            expected = triplet_reference(*leaves, torch.tensor(moved, dtype=torch.float64), temperature=0.1)
            np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
            assert value > base + 1e-3
