"""Operations of a training step by arithmetic: what utilisation is measured against."""

from collections.abc import Sequence

from pplx_jax.models.qwen3 import Qwen3Config


def model_flops(config: Qwen3Config, text_lengths: Sequence[int], predicted_share: float) -> float:
    """Operations of one step without recomputation.

    6 x non-embedding parameters a token, 6 x V x D a position with a loss, and 12 x layers x heads x head_dim x length
    a token for attention: bidirectional, so nothing is halved, and each text sees itself alone.

    Args:
      config: the encoder.
      text_lengths: tokens of every text of the batch.
      predicted_share: of the positions that have a loss over the vocabulary.
    """
    tokens = float(sum(text_lengths))
    pairs = sum(float(length) ** 2 for length in text_lengths)
    table = config.vocab_size * config.width
    return (
        6.0 * (config.parameters - table) * tokens
        + 6.0 * table * predicted_share * tokens
        + 12.0 * config.layers * config.query_heads * config.head_dim * pairs
    )
