"""Configuration of the bidirectional Qwen3 encoder."""

from transformers import Qwen3Config


class PPLXQwen3Config(Qwen3Config):
    """Qwen3's configuration under the encoder's own name, so that no causal implementation picks it up."""

    model_type = "bidirectional_pplx_qwen3"
