"""Contrastive losses against float64 loops over the paper's formulas, with torch for the gradients.

The loops take switches that build in a mistake each (no mask, no query-query term, ...): these controls must
differ.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pplx_jax.contrastive import losses

N, C, K, WIDTH = 6, 3, 2, 5

pair_loss = jax.jit(losses.pair_loss)
triplet_loss = jax.jit(losses.triplet_loss)
sequence_loss = jax.jit(losses.sequence_loss)
batch_loss = jax.jit(losses.batch_loss)
contextual_loss = jax.jit(losses.contextual_loss)


def scalar(result):
    """A loss that comes with or without metrics."""
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
    rows = [i for i in range(len(query)) if valid is None or valid[i]]
    total, kept, dropped = 0.0, 0, 0
    for i in rows:
        positive = cosine(query[i], document[i])
        terms = []
        for j in rows:
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
                # Any closer, and float32 might decide otherwise.
                assert abs(similarity.item() - positive.item() - margin) > 1e-5
                if similarity <= positive + margin or not masked:
                    terms.append(similarity)
                    kept += 1
                else:
                    dropped += 1
        total = total + softmax_loss(positive, terms, temperature)
    assert kept and (dropped or not masked)  # the case must reach both sides of the mask
    return total / len(rows)


def sequence_reference(query, chunks, chunk_valid, chunk, *, temperature):
    total = 0.0
    for i in range(len(query)):
        others = [cosine(query[i], chunks[i, c]) for c in range(C) if chunk_valid[i, c] and c != chunk[i]]
        total = total + softmax_loss(cosine(query[i], chunks[i, chunk[i]]), others, temperature)
    return total / len(query)


def batch_reference(query, chunks, chunk_valid, chunk, *, temperature, own=True):
    total = 0.0
    for i in range(len(query)):
        others = [
            cosine(query[i], chunks[j, c])
            for j in range(len(query))
            for c in range(C)
            if chunk_valid[j, c] and (j, c) != (i, chunk[i]) and (own or j != i)
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
    """Integers in [-127, 127] as the quantizer leaves them."""
    values = np.rint(np.random.default_rng(seed).normal(size=(*shape, WIDTH)) * 45)
    return np.clip(values, -127, 127).astype(np.float32)


def pairs(seed=0):
    """Queries a little closer to their own document than to the others, so that the mask has work."""
    query = vectors(N, seed=seed)
    return query, np.rint(0.3 * query + 0.9 * vectors(N, seed=seed + 1)).astype(np.float32)


def leaves_of(*arrays):
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def assert_matches(loss, reference, arrays, tolerance=2e-5):
    """Value and gradient of `loss` (a function of the arrays) equal those of the float64 reference."""
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


# Pair loss


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


def test_pair_defaults_are_the_papers():
    query, document = pairs()
    default, _ = pair_loss(query, document)
    explicit, _ = pair_loss(query, document, temperature=0.02, margin=0.1)
    assert float(default) == float(explicit)


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
    value = assert_matches(functools.partial(losses.triplet_loss, temperature=temperature), reference, arrays)
    assert_differs(value, functools.partial(reference, own_only=True), arrays)
    assert_differs(value, functools.partial(reference, masked=True), arrays)
    assert_differs(value, functools.partial(reference, query_query=True), arrays)


def test_triplet_default_temperature():
    arrays = triplet_case()
    default, explicit = triplet_loss(*arrays), triplet_loss(*arrays, temperature=0.03)
    assert float(default[0]) == float(explicit[0])


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
