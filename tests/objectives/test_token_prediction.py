"""Next tokens, masked tokens and masked next tokens against loops in torch and float64, with gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pplx_jax.objectives.corruption import Corruption
from pplx_jax.objectives.token_prediction import masked_next_tokens, masked_tokens, mean_cross_entropy, next_tokens

SEQUENCES, LENGTH, WIDTH, VOCABULARY, MASK = 3, 20, 6, 37, 3
KINDS = ("next", "masked", "masked_next")


def case(seed=0, share=0.4):
    """Three packed sequences: padding inside and at the end, and a text of one token."""
    generator = np.random.default_rng(seed)
    segments = np.zeros((SEQUENCES, LENGTH), np.int32)
    segments[0, :8], segments[0, 8:13], segments[0, 15:20] = 1, 2, 3
    segments[1, :17] = 1
    segments[2, 0], segments[2, 1:11] = 1, 2
    corrupted = (segments > 0) & (generator.random(segments.shape) < share)
    corrupted[0, [0, 8]] = share > 0  # first tokens of texts
    tokens = generator.integers(0, VOCABULARY, segments.shape).astype(np.int32)
    hidden = generator.normal(size=(*segments.shape, WIDTH)).astype(np.float32)
    embedding = generator.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    corruption = Corruption(
        inputs=jnp.where(corrupted, MASK, tokens),
        segment_ids=jnp.asarray(segments),
        corrupted=jnp.asarray(corrupted),
        valid=jnp.asarray(segments > 0),
        mask_probability=jnp.full(segments.shape, share, jnp.float32),
    )
    return hidden, embedding, tokens, corruption


def targets_of(kind, tokens, corruption):
    if kind == "next":
        return next_tokens(tokens, corruption.segment_ids)
    return {"masked": masked_tokens, "masked_next": masked_next_tokens}[kind](tokens, corruption)


@functools.cache
def compiled(kind):
    def loss(hidden, embedding, tokens, corruption):
        return mean_cross_entropy(hidden, embedding, targets_of(kind, tokens, corruption))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def run(kind, hidden, embedding, tokens, corruption):
    loss, gradient = compiled(kind)(hidden, embedding, jnp.asarray(tokens), corruption)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    return float(loss), [np.asarray(part) for part in gradient]


def reference(kind, hidden, embedding, tokens, corruption, *, shift=None, cross=False, every=False):
    """The mean over targets in float64; the options are the mistakes of the controls."""
    segments, corrupted = np.asarray(corruption.segment_ids), np.asarray(corruption.corrupted)
    shift = (0 if kind == "masked" else 1) if shift is None else shift
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, place in np.ndindex(*segments.shape):
        if segments[row, place] == 0 or not (kind == "next" or corrupted[row, place] or every):
            continue
        first = place == 0 or segments[row, place - 1] != segments[row, place]
        if (kind != "masked" and first and not cross) or place < shift:
            continue
        logits = embedding @ hidden[row, place - shift]
        total = total + torch.logsumexp(logits, 0) - logits[int(tokens[row, place])]
        count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_against_torch(kind):
    hidden, embedding, tokens, corruption = case()
    loss, gradient = run(kind, hidden, embedding, tokens, corruption)
    leaves = [torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (hidden, embedding)]
    expected = reference(kind, *leaves, tokens, corruption)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for part, leaf in zip(gradient, leaves, strict=True):
        assert np.abs(part).max() > 0
        np.testing.assert_allclose(part, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    # Controls: the other shift, predictions over the boundary of two texts, tokens that are not masked.
    fixed = [leaf.detach() for leaf in leaves]
    mistakes = [{"shift": 1 if kind == "masked" else 0}]
    mistakes += [] if kind == "masked" else [{"cross": True}]
    mistakes += [] if kind == "next" else [{"every": True}]
    for mistake in mistakes:
        wrong = reference(kind, *fixed, tokens, corruption, **mistake).item()
        assert abs(wrong / expected.item() - 1) > 1e-3, mistake


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_target_has_no_part(kind):
    hidden, embedding, tokens, corruption = case()
    targets = targets_of(kind, jnp.asarray(tokens), corruption)
    predicted = np.asarray(targets.predicted)
    loss, (hidden_gradient, _) = run(kind, hidden, embedding, tokens, corruption)
    np.testing.assert_array_equal(hidden_gradient[~predicted], 0.0)
    disturbed = np.where(predicted[..., None], hidden, np.float32(77))
    assert run(kind, disturbed, embedding, tokens, corruption)[0] == loss
    aimed = np.zeros_like(predicted)  # the places of the targets
    shift = 0 if kind == "masked" else 1
    aimed[:, shift:] = predicted[:, : LENGTH - shift]
    other = np.where(aimed, tokens, (tokens + 5) % VOCABULARY)
    assert run(kind, hidden, embedding, other, corruption)[0] == loss
    # Control: another target is another loss.
    assert run(kind, hidden, embedding, (tokens + 5) % VOCABULARY, corruption)[0] != loss


@pytest.mark.parametrize("kind", KINDS)
def test_without_targets_the_loss_is_zero(kind):
    hidden, embedding, tokens, corruption = case(share=0.0)
    corruption = corruption._replace(segment_ids=jnp.zeros_like(corruption.segment_ids))
    loss, gradient = run(kind, hidden, embedding, tokens, corruption)
    assert loss == 0.0
    for part in gradient:
        np.testing.assert_array_equal(part, 0.0)


def test_parts_with_the_count_of_the_whole_add_up_to_the_whole():
    hidden, embedding, tokens, corruption = case()
    whole = targets_of("next", jnp.asarray(tokens), corruption)
    expected, _ = run("next", hidden, embedding, tokens, corruption)

    def part(row, count):
        targets = next_tokens(jnp.asarray(tokens[row : row + 1]), corruption.segment_ids[row : row + 1])
        return float(mean_cross_entropy(hidden[row : row + 1], embedding, targets, count))

    np.testing.assert_allclose(sum(part(row, whole.total) for row in range(SEQUENCES)), expected, rtol=1e-6)
    # Control: a mean of the means of the parts.
    assert abs(np.mean([part(row, None) for row in range(SEQUENCES)]) / expected - 1) > 1e-3
