"""The model families of Hugging Face folders that our encoder implements, and their names there.

Published embedding models have a `model_type` of their own, so that no causal implementation opens them.
"""

import dataclasses

from pplx_jax.core.errors import BadInput
from pplx_jax.models.transformer import Qwen3Config


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: of `config.json`, and the architecture of a GGUF file.
      title: the start of the names of transformers' classes.
      qk_norm: as in `Qwen3Config`.
      qkv_bias: as in `Qwen3Config`.
      rms_norm_eps: where `config.json` has none; None if it must have one.
      rope_theta: where `config.json` has none; None if it must have one.
    """

    model_type: str
    title: str
    qk_norm: bool
    qkv_bias: bool
    rms_norm_eps: float | None = 1e-6
    rope_theta: float | None = 10_000.0

    @property
    def pplx_model_type(self) -> str:
        """The `model_type` of exports."""
        return f"bidirectional_pplx_{self.model_type}"


QWEN3 = Family("qwen3", "Qwen3", qk_norm=True, qkv_bias=False, rms_norm_eps=None, rope_theta=None)
FAMILIES = (
    QWEN3,
    Family("llama", "Llama", qk_norm=False, qkv_bias=False),  # SmolLM2 too
    Family("qwen2", "Qwen2", qk_norm=False, qkv_bias=True),  # Qwen2.5
)
PPLX_MODEL_TYPES = tuple(family.pplx_model_type for family in FAMILIES)


def family_of(config: Qwen3Config) -> Family:
    """Returns the family of an encoder.

    Raises:
      BadInput: no family has its features.
    """
    if config.pooling != "mean":
        raise BadInput(f"a model with pooling={config.pooling!r} cannot be exported; the published layout has the mean")
    for family in FAMILIES:
        if (family.qk_norm, family.qkv_bias) == (config.qk_norm, config.qkv_bias):
            return family
    raise BadInput(
        f"no family of Hugging Face models has qk_norm={config.qk_norm} and qkv_bias={config.qkv_bias}, so the model "
        f"cannot be exported; the families are {', '.join(family.title for family in FAMILIES)}"
    )
