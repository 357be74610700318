"""FLOPs of a training step, and peak FLOP/s of devices, for the model FLOPs utilization (MFU)."""

import jax

from pplx_jax.models.transformer import Qwen3Config

# Dense bf16 FLOP/s per JAX device, by the prefix of its `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # one of the two devices of a chip
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def training_flops(config: Qwen3Config, *, tokens: float, token_pairs: float, predicted: float) -> float:
    """Returns the model FLOPs of a training step, without recomputation.

    6 x parameters without the embedding table x tokens, 6 x V x D x predicted tokens, and 12 x layers x H x E x pairs
    of tokens that attend to each other. A text of n tokens has n squared pairs, because attention is bidirectional:
    they are not halved, as they are for models with a causal mask. The formula is PaLM's (arXiv 2204.02311, appendix
    B).

    Args:
      config: the encoder.
      tokens: number of tokens in all texts.
      token_pairs: sum over texts of their length squared.
      predicted: number of positions with a loss over the vocabulary.
    """
    blocks = config.parameters - config.vocab_size * config.width
    attention = 12 * config.layers * config.query_heads * config.head_dim * token_pairs
    return 6 * blocks * tokens + 6 * config.vocab_size * config.width * predicted + attention


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Returns the peak FLOP/s of one device, by default the first one; None for an unknown device."""
    kind = (device or jax.devices()[0]).device_kind
    known = [start for start in PEAK_FLOPS if kind.startswith(start)]
    return PEAK_FLOPS[max(known, key=len)] if known else None
