"""The contrastive losses as float64 loops over the paper's formulas, with torch for the gradients.

The loops have switches that each add an error (no mask, no query-query term, ...): results with these must differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

N, C, K, WIDTH = 6, 3, 2, 5


def scalar(result):
    """Returns the loss of a function that may return metrics with it."""
    return result[0] if isinstance(result, tuple) else result


def cosine(x, y):
    return (x * y).sum() / (x.norm() * y.norm())


def softmax_loss(positive, others, temperature):
    terms = torch.stack([positive, *others]) / temperature
    return torch.logsumexp(terms, 0) - positive / temperature


def pair_reference(
    query, document, *, temperature, margin=0.1, document_hash=None, valid=None,
    masked=True, query_query=True, document_document=False, both_ways=False,
):  # fmt: skip
    examples = [i for i in range(len(query)) if valid is None or valid[i]]
    total, used, dropped = 0.0, 0, 0
    for i in examples:
        positive = cosine(query[i], document[i])
        terms = []
        for j in examples:
            if j == i:
                continue
            candidates = []
            if document_hash is None or document_hash[i] != document_hash[j]:
                candidates.append(cosine(query[i], document[j]))
            if query_query:
                candidates.append(cosine(query[i], query[j]))
            if document_document:
                candidates.append(cosine(document[i], document[j]))
            if both_ways:
                candidates.append(cosine(query[j], document[i]))
            for similarity in candidates:
                # Closer to the limit, float32 could decide differently.
                assert abs(similarity.item() - positive.item() - margin) > 1e-5
                if similarity <= positive + margin or not masked:
                    terms.append(similarity)
                    used += 1
                else:
                    dropped += 1
        total = total + softmax_loss(positive, terms, temperature)
    assert used and (dropped or not masked)  # the case must have candidates on both sides of the mask
    return total / len(examples)


def sequence_reference(query, chunks, chunk_valid, chunk, *, temperature, also_positive=None):
    total = 0.0
    negative = chunk_valid if also_positive is None else chunk_valid & ~also_positive
    for i in range(len(query)):
        others = [cosine(query[i], chunks[i, c]) for c in range(C) if negative[i, c] and c != chunk[i]]
        total = total + softmax_loss(cosine(query[i], chunks[i, chunk[i]]), others, temperature)
    return total / len(query)


def batch_reference(query, chunks, chunk_valid, chunk, *, temperature, own=True, also_positive=None):
    total = 0.0
    for i in range(len(query)):
        others = [
            cosine(query[i], chunks[j, c])
            for j in range(len(query))
            for c in range(C)
            if chunk_valid[j, c] and (j, c) != (i, chunk[i]) and (own or j != i)
            if j != i or also_positive is None or not also_positive[i, c]
        ]
        total = total + softmax_loss(cosine(query[i], chunks[i, chunk[i]]), others, temperature)
    return total / len(query)


def triplet_reference(query, document, negatives, *, temperature, own_only=False, masked=False, query_query=False):
    total = 0.0
    for i in range(len(query)):
        positive = cosine(query[i], document[i])
        others = [cosine(query[i], document[j]) for j in range(len(query)) if j != i]
        for j in range(len(query)):
            if j == i or not own_only:
                others += [cosine(query[i], negatives[j, k]) for k in range(negatives.shape[1])]
        if query_query:
            others += [cosine(query[i], query[j]) for j in range(len(query)) if j != i]
        if masked:
            others = [similarity for similarity in others if similarity <= positive + 0.1]
        total = total + softmax_loss(positive, others, temperature)
    return total / len(query)


def vectors(*shape, seed):
    """Returns integers in [-127, 127], as the quantizer returns them."""
    values = np.rint(np.random.default_rng(seed).normal(size=(*shape, WIDTH)) * 45)
    return np.clip(values, -127, 127).astype(np.float32)


def pairs(seed=0):
    """Returns queries slightly closer to their own document than to the others, so that the mask matters."""
    query = vectors(N, seed=seed)
    return query, np.rint(0.3 * query + 0.9 * vectors(N, seed=seed + 1)).astype(np.float32)


def leaves_of(*arrays):
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def assert_matches(loss, reference, arrays, tolerance=2e-5):
    """Checks that value and gradient of `loss`, a function of the arrays, equal those of the float64 reference."""
    value, gradient = jax.jit(jax.value_and_grad(lambda xs: scalar(loss(*xs))))(list(arrays))
    leaves = leaves_of(*arrays)
    expected = reference(*leaves)
    expected.backward()
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(float(value), expected.item(), rtol=tolerance, atol=1e-6)
    for part, leaf in zip(gradient, leaves, strict=True):
        exact = leaf.grad.numpy()
        assert np.abs(exact).max() > 0
        np.testing.assert_allclose(part, exact, rtol=1e-3, atol=2e-5 * np.abs(exact).max())
    return float(value)


def assert_differs(value, reference, arrays):
    wrong = reference(*[leaf.detach() for leaf in leaves_of(*arrays)]).item()
    assert abs(wrong - value) > 1e-3 * abs(value), "the control should not agree"
