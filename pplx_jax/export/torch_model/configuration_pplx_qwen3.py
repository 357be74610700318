"""Configuration of the bidirectional Qwen3 encoder."""

from transformers import Qwen3Config


class PPLXQwen3Config(Qwen3Config):
    """Qwen3's configuration with another model type, so that no causal implementation uses it."""

    model_type = "bidirectional_pplx_qwen3"

    def __init__(self, **kwargs):
        # Transformers 5 saves the RoPE base in `rope_parameters`, which transformers 4 does not read.
        rope = kwargs.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            kwargs["rope_theta"] = rope["rope_theta"]
        super().__init__(**kwargs)
