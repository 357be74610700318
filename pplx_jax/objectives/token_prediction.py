"""Which token each position predicts, and the mean cross-entropy of those predictions.

A position predicts the token after it, as in an autoregressive model, or its own token, as in BERT (arXiv 1810.04805).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy
from pplx_jax.objectives.corruption import Corruption


class Targets(NamedTuple):
    """What the positions of a batch predict.

    Attributes:
      tokens: [B, L], the id that each position predicts.
      predicted: bool [B, L], the positions with a loss.
    """

    tokens: jax.Array
    predicted: jax.Array

    @property
    def total(self) -> jax.Array:
        """Number of positions with a loss, a float32 scalar."""
        return jnp.sum(self.predicted, dtype=jnp.float32)


def following(x: jax.Array) -> jax.Array:
    """Returns [B, L] of the token after each position; 0 after the last."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def is_followed(segment_ids: jax.Array) -> jax.Array:
    """Returns bool [B, L] of whether the token after each position is one of the same text."""
    return (segment_ids > 0) & (following(segment_ids) == segment_ids)


def next_tokens(tokens: jax.Array, segment_ids: jax.Array) -> Targets:
    """Returns the targets of autoregressive training: every token that follows a token of its text."""
    return Targets(following(tokens), is_followed(segment_ids))


def masked_tokens(tokens: jax.Array, corruption: Corruption) -> Targets:
    """Returns the targets of masked language modelling: each masked token, predicted at its own position."""
    return Targets(tokens, corruption.corrupted)


def masked_next_tokens(tokens: jax.Array, corruption: Corruption) -> Targets:
    """Returns the masked tokens, each predicted at the position before it (LLM2Vec, arXiv 2404.05961).

    The first token of a text has no position before it and is never a target.
    """
    predicted = is_followed(corruption.segment_ids) & following(corruption.corrupted)
    return Targets(following(tokens), predicted)


def mean_cross_entropy(
    hidden: jax.Array, embedding: jax.Array, targets: Targets, count: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy of the targets under softmax(hidden @ embedding^T), a float32 scalar; 0 without targets.

    Args:
      hidden: [B, L, D].
      embedding: [V, D], the output table.
      targets: what each position predicts.
      count: number of targets of the whole batch, if these sequences are a part of one. The losses of all parts then
        add up to that of the batch.
    """
    weights = targets.predicted / jnp.maximum(targets.total if count is None else count, 1.0)
    return vocab_cross_entropy(hidden, embedding, targets.tokens, weights)[0]
