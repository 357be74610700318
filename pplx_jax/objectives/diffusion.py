"""The training loss of masked diffusion: a weighted cross-entropy that bounds the log-likelihood."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy
from pplx_jax.objectives.corruption import Corruption

Normalizer = Literal["valid", "masked"]


def diffusion_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    tokens: jax.Array,
    corruption: Corruption,
    *,
    normalizer: Normalizer = "valid",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative evidence bound of the clean text: cross-entropy of masked tokens weighted 1 / t.

    The left shift of the autoregressive base is kept: the hidden state at position i predicts token i + 1 of the
    same text, so the first token of a text is never a target (arXiv 2602.11151, section 2.1).

    Args:
      hidden: [B, L, D], the encoder's output on `corruption.inputs`.
      embedding: [V, D], the tied head.
      tokens: [B, L], the clean ids.
      corruption: what `corrupt` returned.
      normalizer: "valid" divides by the tokens that have a predictor (LLaDA), "masked" by those that are targets
        (DiffuLLaMA). They differ by about 1 / t, so learning rates do not carry over.

    Returns:
      The loss, a float32 scalar that is 0 where nothing was masked, and metrics: `cross_entropy` (unweighted, nats
      a target) and `masked_share`.

    Raises:
      BadInput: an unknown normalizer.
    """
    segments = corruption.segment_ids

    def following(x: jax.Array) -> jax.Array:
        """[B, L] of the token after each position; nothing follows the last."""
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    predictable = following(corruption.valid) & (following(segments) == segments)
    target = predictable & following(corruption.corrupted)
    targets = jnp.sum(target, dtype=jnp.float32)
    tokens_with_predictor = jnp.sum(predictable, dtype=jnp.float32)
    match normalizer:
        case "valid":
            count = tokens_with_predictor
        case "masked":
            count = targets
        case _:
            raise BadInput(f"normalizer={normalizer!r} is not one of {', '.join(get_args(Normalizer))}")

    time = jnp.where(target, following(corruption.time), 1.0)
    elbo_weight = jnp.where(target, 1.0 / time, 0.0) / jnp.maximum(count, 1.0)
    loss, cross_entropy = vocab_cross_entropy(hidden, embedding, following(tokens), elbo_weight)
    mean_cross_entropy = jnp.sum(cross_entropy) / jnp.maximum(targets, 1.0)
    metrics = {
        "cross_entropy": mean_cross_entropy,
        "masked_share": targets / jnp.maximum(tokens_with_predictor, 1.0),
    }
    return loss, metrics
