"""Masked next-token prediction (LLM2Vec, arXiv 2404.05961), to compare diffusion with."""

import dataclasses
from typing import ClassVar

from pplx_jax.objectives.token_prediction import masked_next_tokens
from pplx_jax.training.stages.masked_lm import MaskedLMStage


@dataclasses.dataclass(frozen=True)
class MaskedNextTokenStage(MaskedLMStage):
    """As `MaskedLMStage`, but a masked token is predicted from the hidden state at the position before it.

    An autoregressive base model predicts from there, too. The default of `mask_rate` is LLM2Vec's.
    """

    mask_rate: float = 0.2

    name: ClassVar[str] = "masked_next_token"
    summary: ClassVar[str] = "masked next tokens of text"

    def targets(self, tokens, corruption):
        return masked_next_tokens(tokens, corruption)
