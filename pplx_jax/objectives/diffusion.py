"""The loss of masked diffusion: a weighted cross-entropy, the negative evidence lower bound (ELBO)."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy
from pplx_jax.objectives.corruption import Corruption
from pplx_jax.objectives.token_prediction import following, is_followed

Normalizer = Literal["valid", "masked"]


class TargetCounts(NamedTuple):
    """What a batch is normalised by, float32 scalars.

    Attributes:
      predictable: tokens that follow a token of their text.
      targets: the masked ones among them.
    """

    predictable: jax.Array
    targets: jax.Array


def count_targets(corruption: Corruption) -> TargetCounts:
    """Returns the counts of a batch."""
    predictable, target = _targets(corruption)
    return TargetCounts(jnp.sum(predictable, dtype=jnp.float32), jnp.sum(target, dtype=jnp.float32))


def diffusion_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    tokens: jax.Array,
    corruption: Corruption,
    *,
    normalizer: Normalizer = "valid",
    counts: TargetCounts | None = None,
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
      counts: of the whole batch, if these sequences are a part of one. The losses and metrics of all parts then add up
        to those of the batch.

    Returns:
      The loss, a float32 scalar, 0 if nothing was masked, and metrics: `cross_entropy` (unweighted, nats per target)
      and `masked_share`.

    Raises:
      BadInput: the normalizer is unknown.
    """
    _, target = _targets(corruption)
    of_part = count_targets(corruption)
    counts = of_part if counts is None else counts
    match normalizer:
        case "valid":
            count = counts.predictable
        case "masked":
            count = counts.targets
        case _:
            raise BadInput(f"normalizer={normalizer!r} is not one of {', '.join(get_args(Normalizer))}")

    mask_probability = jnp.where(target, following(corruption.mask_probability), 1.0)
    elbo_weight = jnp.where(target, 1.0 / mask_probability, 0.0) / jnp.maximum(count, 1.0)
    loss, cross_entropy = vocab_cross_entropy(hidden, embedding, following(tokens), elbo_weight)
    metrics = {
        "cross_entropy": jnp.sum(cross_entropy) / jnp.maximum(counts.targets, 1.0),
        "masked_share": of_part.targets / jnp.maximum(counts.predictable, 1.0),
    }
    return loss, metrics


def _targets(corruption: Corruption) -> tuple[jax.Array, jax.Array]:
    """Returns [B, L] of whether the token after each position is one of its text, and of whether it is masked too."""
    predictable = is_followed(corruption.segment_ids)
    return predictable, predictable & following(corruption.corrupted)
