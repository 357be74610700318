"""Losses on a teacher's scores: by hand, against float64 loops with torch's gradients, and sentence-transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.loss_references import K, N, assert_differs, assert_matches, cosine, leaves_of, pairs, vectors

from pplx_jax.objectives.distillation import distillation_loss

SCORES = np.random.default_rng(9).normal(size=(N, 1 + K)).astype(np.float32) * 3
KINDS = ("margin_mse", "kl")


def case():
    query, document = pairs(40)
    return query, document, vectors(N, K, seed=42)


def reference(
    query, document, negatives, *, teacher, scores=SCORES, temperature=0.1, teacher_temperature=2.0, weight=None,
    reverse=False, margins=True, normalized=True,
):  # fmt: skip
    """The formulas as loops; `reverse`, `margins` and `normalized` each add an error."""
    total, shares = 0.0, np.ones(N) if weight is None else weight
    for i in range(N):
        similarity = cosine if normalized else lambda a, b: (a * b).sum() / 127**2
        student = torch.stack([similarity(query[i], each) for each in (document[i], *negatives[i])]) / temperature
        wanted = torch.tensor(scores[i], dtype=torch.float64) / teacher_temperature
        if teacher == "margin_mse":
            errors = [
                ((student[0] - student[k]) - (wanted[0] - wanted[k])) if margins else student[k] - wanted[k]
                for k in range(1, 1 + K)
            ]
            loss = sum(error**2 for error in errors) / K
        else:
            of, at = (wanted, student) if not reverse else (student, wanted)
            log_p, log_q = of - torch.logsumexp(of, 0), at - torch.logsumexp(at, 0)
            loss = sum(torch.exp(log_p[c]) * (log_p[c] - log_q[c]) for c in range(1 + K))
        total = total + shares[i] * loss
    return total / shares.sum()


def loss_of(teacher, **changes):
    settings = {"scores": SCORES, "temperature": 0.1, "teacher_temperature": 2.0, **changes}
    return functools.partial(distillation_loss, teacher=teacher, **settings)


@pytest.mark.parametrize("teacher, loss", [("margin_mse", 5.125), ("kl", 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(2.5))])
def test_by_hand(teacher, loss):
    query = jnp.asarray([[1.0, 0.0]])
    document, negatives = jnp.asarray([[0.6, 0.8]]), jnp.asarray([[[0.0, 2.0], [-3.0, 0.0]]])
    if teacher == "margin_mse":
        # Cosines .6, 0, -1 over .2: 3, 0, -5, margins 3 and 8. The teacher's 5, 0, -.5 have margins 5 and 5.5.
        # ((3 - 5)^2 + (8 - 5.5)^2) / 2 = (4 + 6.25) / 2 = 5.125.
        scores = jnp.asarray([[10.0, 0.0, -1.0]])
        found, metrics = distillation_loss(
            query, document, negatives, scores=scores, teacher="margin_mse", temperature=0.2, teacher_temperature=2.0
        )
        assert float(metrics["accuracy"]) == 1 and float(metrics["teacher_agreement"]) == 1
        np.testing.assert_allclose(metrics["positive_similarity"], 0.6, rtol=1e-6)
    else:
        # Student .8 and .2: cosines differ by .6 / temperature = ln 4. Teacher one half each.
        found, metrics = distillation_loss(
            query, document, negatives[:, :1], scores=jnp.ones((1, 2)), teacher="kl", temperature=0.6 / np.log(4.0)
        )
        assert float(metrics["teacher_agreement"]) == 0  # the teacher sees no difference
    np.testing.assert_allclose(found, loss, rtol=1e-5)


@pytest.mark.parametrize("teacher", KINDS)
def test_value_and_gradient_against_float64(teacher):
    expected = functools.partial(reference, teacher=teacher)
    value = assert_matches(loss_of(teacher), expected, case())
    other = KINDS[1 - KINDS.index(teacher)]
    wrong = [{"teacher": other}, {"normalized": False}, {"teacher_temperature": 1.0}, {"temperature": 0.2}]
    wrong += [{"margins": False}] if teacher == "margin_mse" else [{"reverse": True}]
    for changes in wrong:
        assert_differs(value, functools.partial(reference, **{"teacher": teacher, **changes}), case())
    # Scores of another order are noticed.
    assert_differs(value, functools.partial(expected, scores=SCORES[:, ::-1].copy()), case())


@pytest.mark.parametrize("teacher", KINDS)
def test_the_gradient_is_the_slope_of_the_loss(teacher):
    """Finite differences of the float64 loops, independent of torch's and JAX's differentiation."""
    arrays = case()
    gradient = jax.jit(jax.grad(lambda xs: loss_of(teacher)(*xs)[0]))(list(arrays))
    generator = np.random.default_rng(1)
    directions = [generator.normal(size=array.shape) for array in arrays]
    step = 1e-4

    def at(sign):
        moved = [array + sign * step * each for array, each in zip(arrays, directions, strict=True)]
        return reference(*[leaf.detach() for leaf in leaves_of(*moved)], teacher=teacher).item()

    slope = sum(float((part * each).sum()) for part, each in zip(gradient, directions, strict=True))
    np.testing.assert_allclose(slope, (at(1) - at(-1)) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("teacher", KINDS)
def test_only_differences_of_the_scores_matter_and_scores_have_no_gradient(teacher):
    arrays, shifted = case(), SCORES + np.arange(N, dtype=np.float32)[:, None]
    np.testing.assert_allclose(loss_of(teacher, scores=shifted)(*arrays)[0], loss_of(teacher)(*arrays)[0], rtol=1e-5)
    slope = jax.grad(lambda scores: loss_of(teacher, scores=scores)(*arrays)[0])(jnp.asarray(SCORES))
    assert not np.any(slope)
    # A student that scores as its teacher has no loss.
    query, document, negatives = case()
    texts = np.concatenate([document[:, None], negatives], axis=1)
    same = np.einsum("nd,ncd->nc", query, texts) / np.linalg.norm(query, axis=1)[:, None]
    same = same / np.linalg.norm(texts, axis=2) / 0.1 * 2.0
    np.testing.assert_allclose(loss_of(teacher, scores=same.astype(np.float32))(*arrays)[0], 0, atol=1e-5)


@pytest.mark.parametrize("teacher", KINDS)
def test_weights_are_those_of_queries(teacher):
    weight = np.array([1, 0, 2, 0.5, 1, 3], np.float32)
    expected = functools.partial(reference, teacher=teacher, weight=weight)
    value = assert_matches(loss_of(teacher, weight=weight), expected, case())
    assert_differs(value, functools.partial(reference, teacher=teacher), case())


@pytest.mark.slow
@pytest.mark.parametrize("teacher", KINDS)
def test_the_losses_are_those_of_sentence_transformers(teacher):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    student = lambda a, b: torch.cosine_similarity(a, b) / 0.1  # noqa: E731
    if teacher == "margin_mse":
        theirs = losses.MarginMSELoss(None, similarity_fct=student)
        labels = torch.tensor(SCORES, dtype=torch.float64) / 2.0
    else:
        theirs = losses.DistillKLDivLoss(None, student, student_temperature=1.0, teacher_temperature=2.0)
        labels = torch.tensor(SCORES, dtype=torch.float64)

    def expected(query, document, negatives):
        embeddings = [query, document, *negatives.unbind(1)]
        return theirs.compute_loss_from_embeddings(embeddings, labels)

    assert_matches(loss_of(teacher), expected, case())
