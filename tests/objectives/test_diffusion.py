"""The diffusion objective against torch in float64: left shift, 1/t, two normalisers, text boundaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pplx_jax.core import errors
from pplx_jax.objectives import diffusion as objective
from pplx_jax.objectives.corruption import Corruption

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 24, 6, 37
NORMALIZERS = ("valid", "masked")


def case(seed=0, share=0.5):
    """Three packed rows; the second text of row 0 was cut, row 2 has a text of one token."""
    generator = np.random.default_rng(seed)
    segment_ids = np.zeros((ROWS, LENGTH), np.int32)
    segment_ids[0, :9], segment_ids[0, 9:14], segment_ids[0, 18:24] = 1, 2, 3
    segment_ids[1, :20] = 1
    segment_ids[2, 0], segment_ids[2, 1:12] = 1, 2
    valid = segment_ids > 0
    time = np.ones((ROWS, LENGTH), np.float32)
    for row in range(ROWS):
        for name in range(1, 4):
            time[row, segment_ids[row] == name] = generator.uniform(0.05, 1)
    corrupted = valid & (generator.random((ROWS, LENGTH)) < share)
    corrupted[0, [0, 9]] = share > 0  # first tokens of texts are masked too, and have no predictor
    tokens = generator.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    hidden = generator.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    embedding = generator.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    corruption = make(np.where(corrupted, 3, tokens), segment_ids, corrupted, valid, time)
    return hidden, embedding, tokens, corruption


def make(inputs, segment_ids, corrupted, valid, time):
    return Corruption(
        inputs=jnp.asarray(inputs, jnp.int32),
        segment_ids=jnp.asarray(segment_ids, jnp.int32),
        corrupted=jnp.asarray(corrupted, bool),
        valid=jnp.asarray(valid, bool),
        mask_probability=jnp.asarray(time, jnp.float32),
    )


def reference(hidden, embedding, tokens, corruption, normalizer, *, shift=1, weighted=True, cross=False):
    """Loops in float64; `shift`, `weighted`, `cross` switch on the mistakes that the controls make."""
    segments, corrupted = np.asarray(corruption.segment_ids), np.asarray(corruption.corrupted)
    time = np.asarray(corruption.mask_probability, np.float64)
    total, valid, masked = torch.zeros((), dtype=torch.float64), 0, 0
    for row in range(segments.shape[0]):
        for place in range(1, segments.shape[1]):
            if segments[row, place] == 0:
                continue
            if segments[row, place - 1] != segments[row, place] and not cross:
                continue
            valid += 1
            if corrupted[row, place]:
                masked += 1
                logits = embedding @ hidden[row, place - shift]
                entropy = torch.logsumexp(logits, 0) - logits[int(tokens[row, place])]
                total = total + entropy / (time[row, place] if weighted else 1.0)
    return total / max(valid if normalizer == "valid" else masked, 1)


@functools.cache
def compiled(normalizer):
    def loss(hidden, embedding, tokens, corruption):
        return objective.diffusion_loss(hidden, embedding, tokens, corruption, normalizer=normalizer)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def run(hidden, embedding, tokens, corruption, normalizer):
    (loss, _), gradient = compiled(normalizer)(hidden, embedding, tokens, corruption)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    return float(loss), [np.asarray(part) for part in gradient]


loss_of = jax.jit(objective.diffusion_loss, static_argnames="normalizer")


def test_by_hand():
    # Hidden zero, so every cross-entropy is ln 3 = 1.0986123. Texts: places 0-2 and place 3.
    hidden, embedding = jnp.zeros((1, 5, 2)), jnp.asarray([[1.0, 0], [0, 1], [1, 1]])
    tokens = jnp.asarray([[0, 1, 2, 1, 0]])
    corruption = make([[0, 1, 2, 1, 0]], [[1, 1, 1, 2, 0]], [[0, 1, 0, 1, 0]], [[1, 1, 1, 1, 0]],
                      [[0.5, 0.5, 0.5, 0.25, 1]])  # fmt: skip
    # Place 3 is masked but first in its text: no loss. Place 1: ln 3 / 0.5 = 2.1972246.
    # "valid": places 1 and 2 have a predecessor, so / 2 = 1.0986123; "masked": one loss position, / 1.
    loss, _ = loss_of(hidden, embedding, tokens, corruption, normalizer="valid")
    np.testing.assert_allclose(loss, 1.0986123, rtol=1e-6)
    loss, _ = loss_of(hidden, embedding, tokens, corruption, normalizer="masked")
    np.testing.assert_allclose(loss, 2.1972246, rtol=1e-6)
    # All valid tokens is the default (recipe, section 2).
    loss, metrics = loss_of(hidden, embedding, tokens, corruption)
    np.testing.assert_allclose(loss, 1.0986123, rtol=1e-6)
    assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())


def test_prediction_comes_from_the_place_before():
    # Embedding rows are axes; hidden[i] points at token i + 1 with strength 50: loss 0 under the left shift.
    tokens = jnp.asarray([[0, 1, 2, 3]])
    embedding = jnp.eye(4)
    corruption = make([[3, 3, 3, 3]], [[1, 1, 1, 1]], [[1, 1, 1, 1]], [[1, 1, 1, 1]], [[1.0] * 4])
    shifted = 50 * jnp.eye(4)[jnp.asarray([[1, 2, 3, 0]])]
    straight = 50 * jnp.eye(4)[tokens]
    loss, _ = loss_of(shifted, embedding, tokens, corruption)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    # Control: hidden that names its own token is wrong by 50 at each of the 3 places with a predecessor.
    loss, _ = loss_of(straight, embedding, tokens, corruption)
    np.testing.assert_allclose(loss, 50.0, rtol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_value_and_gradient_against_torch(normalizer):
    hidden, embedding, tokens, corruption = case()
    loss, gradient = run(hidden, embedding, tokens, corruption, normalizer)
    leaves = [torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (hidden, embedding)]
    expected = reference(*leaves, tokens, corruption, normalizer)
    expected.backward()
    expected_value = expected.item()
    np.testing.assert_allclose(loss, expected_value, rtol=1e-5)
    for part, leaf in zip(gradient, leaves, strict=True):
        assert np.abs(part).max() > 0
        np.testing.assert_allclose(part, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    # Controls: no shift, no 1/t, boundaries crossed, the other normaliser: each is off by far more than 1e-5.
    fixed = [leaf.detach() for leaf in leaves]
    other = NORMALIZERS[1 - NORMALIZERS.index(normalizer)]
    wrong = [
        reference(*fixed, tokens, corruption, normalizer, shift=0),
        reference(*fixed, tokens, corruption, normalizer, weighted=False),
        reference(*fixed, tokens, corruption, normalizer, cross=True),
        reference(*fixed, tokens, corruption, other),
    ]
    for value in wrong:
        assert abs(value.item() / expected_value - 1) > 1e-3


def test_what_lies_outside_a_text_has_no_part():
    hidden, embedding, tokens, corruption = case()
    segments = np.asarray(corruption.segment_ids)
    first = np.zeros_like(segments, bool)
    first[:, 0] = True
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    loss, (hidden_gradient, _) = run(hidden, embedding, tokens, corruption, "valid")
    # Targets first in their text, and targets in padding, may be anything.
    unused = first | (segments == 0)
    other = np.where(unused, (tokens + 5) % VOCABULARY, tokens)
    assert run(hidden, embedding, other, corruption, "valid")[0] == loss
    # A hidden vector predicts only within its text: the last one of a text, and padding, get no gradient.
    last = np.zeros_like(segments, bool)
    last[:, -1] = True
    last[:, :-1] = segments[:, 1:] != segments[:, :-1]
    np.testing.assert_array_equal(hidden_gradient[last | (segments == 0)], 0.0)
    disturbed = np.where((last | (segments == 0))[..., None], np.float32(77), hidden)
    assert run(disturbed, embedding, tokens, corruption, "valid")[0] == loss
    # What is visible is no target; the inputs are no target either.
    visible = np.where(np.asarray(corruption.corrupted), tokens, (tokens + 5) % VOCABULARY)
    assert run(hidden, embedding, visible, corruption, "valid")[0] == loss
    # Control: a masked target inside a text counts.
    inside = np.argwhere(np.asarray(corruption.corrupted) & ~first)[0]
    other = tokens.copy()
    other[tuple(inside)] = (other[tuple(inside)] + 5) % VOCABULARY
    assert run(hidden, embedding, other, corruption, "valid")[0] != loss


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_nothing_masked_costs_nothing(normalizer):
    hidden, embedding, tokens, corruption = case(share=0.0)
    assert not np.asarray(corruption.corrupted).any()
    loss, gradient = run(hidden, embedding, tokens, corruption, normalizer)
    assert loss == 0.0
    for part in gradient:
        np.testing.assert_array_equal(part, 0.0)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_rows_of_padding_only(normalizer):
    hidden, embedding, tokens, _ = case()
    nothing = np.zeros((ROWS, LENGTH))
    for time in (nothing, nothing + 1):  # a time of zero in padding must not reach the division
        corruption = make(tokens, nothing, nothing, nothing, time)
        loss, gradient = run(hidden, embedding, tokens, corruption, normalizer)
        assert loss == 0.0
        for part in gradient:
            np.testing.assert_array_equal(part, 0.0)


def test_ratio_of_the_normalisers_is_the_masked_share():
    hidden, embedding, tokens, corruption = case()
    segments, corrupted = np.asarray(corruption.segment_ids), np.asarray(corruption.corrupted)
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    share = (follows & corrupted[:, 1:]).sum() / follows.sum()
    valid = run(hidden, embedding, tokens, corruption, "valid")[0]
    masked = run(hidden, embedding, tokens, corruption, "masked")[0]
    np.testing.assert_allclose(valid / masked, share, rtol=1e-5)


def test_half_precision_hidden_gives_a_float32_loss():
    hidden, embedding, tokens, corruption = case()
    halves = [jnp.asarray(part, jnp.bfloat16) for part in (hidden, embedding)]
    loss, _ = loss_of(*halves, tokens, corruption)
    assert loss.dtype == jnp.float32
    exact = reference(*[torch.tensor(np.asarray(part, np.float64)) for part in halves], tokens, corruption, "valid")
    np.testing.assert_allclose(loss, exact.item(), rtol=5e-3)


def test_unknown_normalizer_is_bad_input():
    with pytest.raises(errors.BadInput, match="tokens"):
        objective.diffusion_loss(*case(), normalizer="tokens")
