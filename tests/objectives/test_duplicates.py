"""Duplicates: which examples are of one group, and that nothing of a group is a negative in any loss, counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_references import WIDTH, C, K, N, vectors

from pplx_jax.objectives.contextual import contextual_loss
from pplx_jax.objectives.contrastive import pair_loss, triplet_loss
from pplx_jax.objectives.duplicates import duplicate_groups, group_of_documents, group_sizes

# Examples 0 and 1 share a query, 1 and 2 a document: one group. 3 stands alone, 4 and 5 are copies in both.
QUERY_HASH = np.array([7, 7, 8, 9, 5, 5], np.int32)
DOCUMENT_HASH = np.array([1, 2, 2, 3, 4, 4], np.int32)
GROUP = np.array([0, 0, 0, 3, 4, 4])
# Hard negatives of example 3 are copies of the documents of 0 and of 4; the others are nobody's.
NEGATIVE_HASH = np.array([[90, 91], [92, 93], [94, 95], [1, 4], [96, 97], [98, 99]], np.int32)
TEMPERATURE = 0.5


def components(query_hash, document_hash):
    """The same by searching through a graph."""
    count = len(query_hash)
    group = np.full(count, -1)
    for start in range(count):
        waiting = [start] if group[start] < 0 else []
        while waiting:
            one = waiting.pop()
            if group[one] < 0:
                group[one] = start
                waiting += [
                    other
                    for other in range(count)
                    if query_hash[other] == query_hash[one] or document_hash[other] == document_hash[one]
                ]
    return group


def test_groups_by_hand():
    np.testing.assert_array_equal(duplicate_groups(jnp.asarray(QUERY_HASH), jnp.asarray(DOCUMENT_HASH)), GROUP)
    np.testing.assert_array_equal(group_sizes(jnp.asarray(GROUP)), [3, 3, 3, 1, 2, 2])


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_connected_components(seed):
    generator = np.random.default_rng(seed)
    hashes = generator.integers(-40, 40, (2, 60)).astype(np.int32)
    np.testing.assert_array_equal(jax.jit(duplicate_groups)(*map(jnp.asarray, hashes)), components(*hashes))


def test_a_chain_through_all_examples_is_one_group():
    query = np.arange(40, dtype=np.int32) // 2
    document = (np.arange(40, dtype=np.int32) + 1) // 2
    np.testing.assert_array_equal(duplicate_groups(jnp.asarray(query), jnp.asarray(document)), np.zeros(40))


def test_further_documents_are_of_the_group_whose_document_they_copy():
    found = group_of_documents(jnp.asarray(GROUP), jnp.asarray(DOCUMENT_HASH), jnp.asarray([4, 2, 50, -3, 1]))
    np.testing.assert_array_equal(found, [4, 0, -1, -1, 0])


def cosines(a, b):
    a, b = (x.astype(np.float64).reshape(-1, WIDTH) for x in (a, b))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def softmax_losses(positive, scores, counts):
    """-log of the positive's share, of each query."""
    total = np.exp(positive / TEMPERATURE) + np.where(counts, np.exp(scores / TEMPERATURE), 0).sum(axis=1)
    return np.log(total) - positive / TEMPERATURE


APART = GROUP[:, None] != GROUP[None, :]


def test_pair_leaves_out_both_texts_of_duplicates_and_counts_them():
    query, document = vectors(N, seed=0), vectors(N, seed=1)
    hashes = {"query_hash": jnp.asarray(QUERY_HASH), "document_hash": jnp.asarray(DOCUMENT_HASH)}
    loss, metrics = pair_loss(query, document, temperature=TEMPERATURE, margin=2.0, **hashes)
    positive = np.diag(cosines(query, document))
    scores = np.concatenate([cosines(query, document), cosines(query, query)], axis=1)
    expected = softmax_losses(positive, scores, np.concatenate([APART, APART], axis=1)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["duplicates"], 2 * np.mean([2, 2, 2, 0, 1, 1]))
    assert metrics["false_negatives"] == 0
    # Control: by documents alone, the query's copies and their documents count.
    other, fewer = pair_loss(
        query, document, temperature=TEMPERATURE, margin=2.0, document_hash=jnp.asarray(DOCUMENT_HASH)
    )
    assert abs(other - loss) > 1e-3 and fewer["duplicates"] < metrics["duplicates"]


def test_false_negatives_are_counted_apart_from_duplicates():
    query, document = vectors(N, seed=0), vectors(N, seed=1)
    hashes = {"query_hash": jnp.asarray(QUERY_HASH), "document_hash": jnp.asarray(DOCUMENT_HASH)}
    _, metrics = pair_loss(query, document, temperature=TEMPERATURE, margin=0.1, **hashes)
    ceiling = np.diag(cosines(query, document))[:, None] + 0.1
    above = sum(((cosines(query, x) > ceiling) & APART).sum() for x in (document, query))
    assert above > 0
    np.testing.assert_allclose(metrics["false_negatives"], above / N, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["masked_negatives"] * (2 * N - 2), metrics["false_negatives"] + metrics["duplicates"], rtol=1e-5
    )


def test_triplet_leaves_out_hard_negatives_that_are_copies_of_a_positive():
    query, document, negatives = vectors(N, seed=0), vectors(N, seed=1), vectors(N, K, seed=2)
    hashes = {
        "query_hash": jnp.asarray(QUERY_HASH),
        "document_hash": jnp.asarray(DOCUMENT_HASH),
        "negative_hash": jnp.asarray(NEGATIVE_HASH),
    }
    loss, metrics = triplet_loss(query, document, negatives, temperature=TEMPERATURE, **hashes)
    of_negatives = np.full(N * K, -1)
    of_negatives[[6, 7]] = [0, 4]
    counts = np.concatenate([APART, GROUP[:, None] != of_negatives[None, :]], axis=1)
    scores = np.concatenate([cosines(query, document), cosines(query, negatives)], axis=1)
    expected = softmax_losses(np.diag(cosines(query, document)), scores, counts).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["duplicates"], (~counts).sum(axis=1).mean() - 1, rtol=1e-6)
    # Control: without their hashes the copies count as negatives of the queries they answer.
    del hashes["negative_hash"]
    assert abs(triplet_loss(query, document, negatives, temperature=TEMPERATURE, **hashes)[0] - loss) > 1e-3


def test_contextual_leaves_the_documents_of_duplicates_out_of_the_batch():
    query, chunks, document = vectors(N, seed=0), vectors(N, C, seed=1), vectors(N, seed=2)
    chunk, valid = np.arange(N) % C, np.ones((N, C), bool)

    def loss_of(query_hash):
        arguments = (query, chunks, jnp.asarray(valid), jnp.asarray(chunk), document, jnp.asarray(DOCUMENT_HASH))
        return contextual_loss(
            *arguments, beta=0.3, temperature=TEMPERATURE, mask_duplicates=True, query_hash=query_hash
        )[1]

    scores = cosines(query, chunks)
    own = np.arange(N)[:, None] == np.arange(N)[None, :]
    counts = np.repeat(APART | own, C, axis=1)
    gold = np.arange(N) * C + chunk
    counts[np.arange(N), gold] = False
    expected = softmax_losses(scores[np.arange(N), gold], scores, counts).mean()
    metrics = loss_of(jnp.asarray(QUERY_HASH))
    np.testing.assert_allclose(metrics["loss_batch"], expected, rtol=1e-5)
    assert metrics["duplicates"] > 0
    assert abs(loss_of(None)["loss_batch"] - expected) > 1e-3


def test_no_gradient_reaches_a_duplicate():
    query, document = vectors(N, seed=0), vectors(N, seed=1)

    def of_first(document, **hashes):
        weight = jnp.asarray([1.0, 0, 0, 0, 0, 0])
        return pair_loss(query, document, temperature=TEMPERATURE, margin=2.0, weight=weight, **hashes)[0]

    hashes = {"query_hash": jnp.asarray(QUERY_HASH), "document_hash": jnp.asarray(DOCUMENT_HASH)}
    gradient = np.asarray(jax.grad(of_first)(document, **hashes))
    assert not gradient[[1, 2]].any() and gradient[[0, 3, 4, 5]].any(axis=1).all()
    assert np.asarray(jax.grad(of_first)(document))[[1, 2]].any(axis=1).all()
