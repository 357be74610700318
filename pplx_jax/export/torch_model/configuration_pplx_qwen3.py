"""Configuration of the bidirectional Qwen3 encoder."""

from transformers import Qwen3Config


class PPLXQwen3Config(Qwen3Config):
    """Qwen3's configuration under the encoder's own name, so that no causal implementation picks it up."""

    model_type = "bidirectional_pplx_qwen3"

    def __init__(self, **kwargs):
        # Transformers 5 saves the base of RoPE within `rope_parameters`, where 4 would not look for it.
        rope = kwargs.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            kwargs["rope_theta"] = rope["rope_theta"]
        super().__init__(**kwargs)
