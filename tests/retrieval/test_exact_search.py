"""Exactness of similarities and of the top k."""

import numpy as np
import pytest

from pplx_jax.kernels.quantization import pack_bits
from pplx_jax.retrieval.exact_search import rank_scores, similarity, top_k
from pplx_jax.retrieval.metrics import tie_places


@pytest.mark.parametrize("width", [8, 1024, 2560])
def test_int8_cosine_is_exact_at_full_range(width):
    rng = np.random.default_rng(width)
    queries, documents = (rng.choice(np.array([-127, 126, 127], np.int8), (n, width)) for n in (5, 7))
    products = queries.astype(np.int64) @ documents.astype(np.int64).T
    norms = [(vectors.astype(np.int64) ** 2).sum(axis=1) for vectors in (queries, documents)]
    exact = (products / np.sqrt(np.outer(*norms).astype(np.float64))).astype(np.float32)
    np.testing.assert_array_equal(similarity(queries, documents), exact)


def test_packed_signs_score_as_the_cosine_of_signs():
    rng = np.random.default_rng(0)
    queries, documents = (rng.choice(np.array([-1, 1], np.int8), (n, 64)) for n in (4, 9))
    plain = similarity(queries, documents)
    for order in ("big", "little"):
        packed = similarity(pack_bits(queries, order), pack_bits(documents, order), packed=True)
        np.testing.assert_array_equal(packed, plain)


def test_zero_vectors_and_floats():
    vectors = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_allclose(similarity(vectors, vectors), [[0, 0], [0, 1]])


def test_equal_float_documents_score_equal_wherever_they_stand():
    for seed in range(20):  # in float32 about fourteen of them fail, on most processors
        rng = np.random.default_rng(seed)
        queries, documents = (rng.normal(size=(n, 256)).astype(np.float32) for n in (5, rng.integers(4, 60)))
        documents[::3] = documents[0]
        scores = similarity(queries, documents)
        np.testing.assert_array_equal(scores[:, ::3], np.broadcast_to(scores[:, :1], scores[:, ::3].shape))


def test_what_cannot_be_compared():
    signs = np.ones((1, 8), np.int8)
    with pytest.raises(ValueError, match="cannot compare"):
        similarity(signs, np.ones((1, 16), np.int8))
    with pytest.raises(ValueError, match="packed signs are uint8"):
        similarity(pack_bits(signs), pack_bits(signs))


@pytest.mark.parametrize("k", [1, 5, 50, 500])
@pytest.mark.parametrize("rows_per_block", [7, 1000])
def test_top_k_is_the_head_of_a_full_sort(k, rows_per_block):
    rng = np.random.default_rng(k)
    documents = rng.integers(-2, 3, (120, 3)).astype(np.int8)  # few values, many ties
    queries = rng.integers(-2, 3, (6, 3)).astype(np.int8)
    ids = [str(number) for number in rng.permutation(120)]
    excluded = rng.random(120) < 0.2
    found, values = top_k(queries, documents, tie_places(ids), k, excluded=excluded, rows_per_block=rows_per_block)
    scores = similarity(queries, documents)
    for row in range(6):
        candidates = [(scores[row, d], ids[d], d) for d in range(120) if not excluded[d]]
        expected = sorted(candidates, reverse=True)[:k]
        assert [entry[2] for entry in expected] == found[row].tolist()
        assert [entry[0] for entry in expected] == values[row].tolist()


def test_negative_zero_ties_with_zero():
    documents, values = rank_scores(np.array([[-0.0, 0.0, -1.0]], np.float32), tie_places(["b", "a", "c"]), 3)
    assert documents.tolist() == [[0, 1, 2]] and values.tolist() == [[0.0, 0.0, -1.0]]
