"""The loss of masked diffusion: a weighted cross-entropy, the negative evidence lower bound (ELBO)."""

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
    """Negative ELBO of the clean text: the cross-entropy of masked tokens with weight 1 / t, t their mask probability.

    As in the autoregressive base model, the hidden state at position i predicts token i + 1 of the same text, so the
    first token of a text is never a target (arXiv 2602.11151, section 2.1).

    Args:
      hidden: [B, L, D], the encoder's output for `corruption.inputs`.
      embedding: [V, D], the output table.
      tokens: [B, L], the clean ids.
      corruption: result of `corrupt`.
      normalizer: "valid" divides by the number of tokens that follow a token of their text (LLaDA), "masked" by the
        number of targets (DiffuLLaMA). They differ by a factor of about 1 / t, and so do suitable learning rates.

    Returns:
      The loss, a float32 scalar, 0 if nothing was masked, and metrics: `cross_entropy` (unweighted, nats per target)
        and
      `masked_share`.

    Raises:
      BadInput: the normalizer is unknown.
    """
    segments = corruption.segment_ids

    def following(x: jax.Array) -> jax.Array:
        """[B, L] of the token after each position; 0 after the last."""
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

    mask_probability = jnp.where(target, following(corruption.mask_probability), 1.0)
    elbo_weight = jnp.where(target, 1.0 / mask_probability, 0.0) / jnp.maximum(count, 1.0)
    loss, cross_entropy = vocab_cross_entropy(hidden, embedding, following(tokens), elbo_weight)
    mean_cross_entropy = jnp.sum(cross_entropy) / jnp.maximum(targets, 1.0)
    metrics = {
        "cross_entropy": mean_cross_entropy,
        "masked_share": targets / jnp.maximum(tokens_with_predictor, 1.0),
    }
    return loss, metrics
