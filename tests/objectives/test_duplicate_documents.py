"""L_batch where two queries of a batch ask about the same document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.objectives import contextual as losses

batch_loss = jax.jit(losses.batch_loss)
contextual_loss = jax.jit(losses.contextual_loss, static_argnames="mask_duplicates")

HASHES = jnp.array([7, 7, 8])
CHUNK = jnp.array([0, 1, 0])
VALID = jnp.array([[True, True], [True, True], [True, False]])
TEMPERATURE = 0.5


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    query, chunks = generator.normal(size=(3, 8)), generator.normal(size=(3, 2, 8))
    chunks[1] = chunks[0]
    return query, chunks


def reference(query, chunks, copies_take_part):
    """In float64, a loop over what stands in each denominator."""
    total = 0.0
    for i in range(3):
        scores = []
        for j in range(3):
            if j != i and HASHES[i] == HASHES[j] and not copies_take_part:
                continue
            for c in range(2):
                if VALID[j, c]:
                    cosine = query[i] @ chunks[j, c] / np.linalg.norm(query[i]) / np.linalg.norm(chunks[j, c])
                    scores.append(cosine / TEMPERATURE)
                    if (j, c) == (i, CHUNK[i]):
                        positive = scores[-1]
        total += np.log(np.sum(np.exp(scores))) - positive
    return total / 3


@pytest.mark.parametrize("hashes, copies_take_part", [(HASHES, False), (None, True)])
def test_copies_take_part_only_without_their_hash(case, hashes, copies_take_part):
    loss = batch_loss(*map(jnp.asarray, case), VALID, CHUNK, temperature=TEMPERATURE, document_hash=hashes)
    np.testing.assert_allclose(loss, reference(*case, copies_take_part), rtol=1e-5)
    assert abs(float(loss) - reference(*case, not copies_take_part)) > 1e-2


def test_a_query_sends_no_gradient_to_a_masked_copy(case):
    query, chunks = map(jnp.asarray, case)

    def gradient_of_first_query(hashes):
        def loss(second_copy):
            both = chunks.at[1].set(second_copy)
            all_queries = batch_loss(query, both, VALID, CHUNK, temperature=TEMPERATURE, document_hash=hashes)
            others = [_unmasked_part(query, both, i, copies=hashes is None) for i in (1, 2)]
            return 3 * all_queries - sum(others)

        return np.asarray(jax.grad(loss)(chunks[1]))

    assert np.abs(gradient_of_first_query(HASHES)).max() < 1e-5
    assert np.abs(gradient_of_first_query(None)).max() > 1e-2


def _unmasked_part(query, chunks, index, copies):
    """One query's term, with or without the copies of its document."""
    scores = jnp.einsum("d,ncd->nc", query[index], chunks)
    scores /= jnp.linalg.norm(query[index]) * jnp.linalg.norm(chunks, axis=-1)
    takes_part = VALID if copies else VALID & ((HASHES != HASHES[index]) | (jnp.arange(3) == index))[:, None]
    logits = jnp.where(takes_part, scores / TEMPERATURE, -jnp.inf)
    return jax.nn.logsumexp(logits) - logits[index, CHUNK[index]]


def test_the_contextual_loss_passes_it_on(case):
    query, chunks = map(jnp.asarray, case)
    document = jnp.mean(chunks, axis=1)

    def batch_part(mask):
        _, metrics = contextual_loss(
            query, chunks, VALID, CHUNK, document, HASHES, beta=0.3, temperature=TEMPERATURE, mask_duplicates=mask
        )
        return float(metrics["loss_batch"])

    assert batch_part(True) == pytest.approx(reference(*case, False), rel=1e-5)
    assert batch_part(False) == pytest.approx(reference(*case, True), rel=1e-5)
