"""The forward process of absorbing-state masked diffusion (arXiv 2602.11151, section 2.1).

The mask probability of a text is its time t. Inputs, the corruption mask and validity are separate arrays: `[MASK]` is
also a real token of the vocabulary, so no mask can be inferred from token ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Corruption(NamedTuple):
    """A corrupted batch; every array is [B, L].

    Attributes:
      inputs: token ids, with the mask token in place of the corrupted ones.
      segment_ids: as given, but 0 (padding) for the ends of shortened texts.
      corrupted: bool, the tokens that were replaced; all are `valid`.
      valid: bool, the tokens that belong to a text.
      mask_probability: float32, t of each token's text.
    """

    inputs: jax.Array
    segment_ids: jax.Array
    corrupted: jax.Array
    valid: jax.Array
    mask_probability: jax.Array


def corrupt(
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    rng: jax.Array,
    *,
    mask_id: int,
    min_time: float = 1e-3,
    max_time: float = 1.0,
    random_length_share: float = 0.01,
) -> Corruption:
    """Draws t ~ U(min_time, max_time) for each text and masks each of its tokens with probability t.

    alpha_t = 1 - t. A packed sequence holds several texts, and each draws its own t. A `random_length_share` of the
    texts is first cut to a length drawn uniformly from 1 to its own length.

    Args:
      tokens: [B, L].
      segment_ids: [B, L], at most L; 0 is padding.
      positions: [B, L]; they restart in each text.
      rng: a key.
      mask_id: id of the mask token; the vocabulary finds it by name.
      min_time: smallest t; the loss weight is at most 1 / min_time.
      max_time: largest t.
      random_length_share: share of texts that are cut.

    Returns:
      A `Corruption`.
    """
    sequences, length = tokens.shape
    time_rng, mask_rng, cut_rng, length_rng = jax.random.split(rng, 4)

    def of_text(values: jax.Array) -> jax.Array:
        """[B, L + 1] values by segment id -> [B, L] by token."""
        return jnp.take_along_axis(values, segment_ids, axis=1)

    per_text = (sequences, length + 1)
    text_lengths = jax.vmap(lambda ids: jnp.bincount(ids, length=length + 1))(segment_ids)
    cut = jax.random.uniform(cut_rng, per_text) < random_length_share
    lengths = 1 + jnp.floor(jax.random.uniform(length_rng, per_text) * text_lengths).astype(jnp.int32)
    lengths = jnp.where(cut, jnp.minimum(lengths, text_lengths), text_lengths)

    valid = (segment_ids > 0) & (positions < of_text(lengths))
    mask_probability = of_text(jax.random.uniform(time_rng, per_text, minval=min_time, maxval=max_time))
    corrupted = valid & (jax.random.uniform(mask_rng, tokens.shape) < mask_probability)
    return Corruption(
        inputs=jnp.where(corrupted, mask_id, tokens),
        segment_ids=jnp.where(valid, segment_ids, 0),
        corrupted=corrupted,
        valid=valid,
        mask_probability=mask_probability,
    )
