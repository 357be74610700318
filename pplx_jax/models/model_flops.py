"""How much of what the chips could compute a training step asks for."""

import jax

from pplx_jax.models.transformer import Qwen3Config

# Dense bf16 FLOP/s of a device as JAX counts devices, by the start of its `device_kind`; the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def training_flops(config: Qwen3Config, *, tokens: float, token_pairs: float, predicted: float) -> float:
    """Model FLOPs of a training step: what the mathematics asks for, recomputation not counted.

    6 x parameters without the embedding table x tokens, 6 x V x D x predicted tokens, and 12 x layers x H x E x pairs
    of tokens that see each other: bidirectional, so for a text of n tokens n squared, as PaLM's formula (arXiv
    2204.02311, appendix B) has it for a sequence of length n.

    Args:
      config: the encoder.
      tokens: in all texts.
      token_pairs: sum over texts of their length squared.
      predicted: positions with a loss of the vocabulary's size.
    """
    blocks = config.parameters - config.vocab_size * config.width
    attention = 12 * config.layers * config.query_heads * config.head_dim * token_pairs
    return 6 * blocks * tokens + 6 * config.vocab_size * config.width * predicted + attention


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Of one device, by default of those in use; None where the table does not know it."""
    kind = (device or jax.devices()[0]).device_kind
    known = [start for start in PEAK_FLOPS if kind.startswith(start)]
    return PEAK_FLOPS[max(known, key=len)] if known else None
