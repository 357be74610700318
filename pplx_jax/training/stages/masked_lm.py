"""Masked language modelling at a fixed rate (arXiv 1810.04805), to compare diffusion with."""

import dataclasses
from typing import ClassVar

import jax

from pplx_jax.core.errors import require
from pplx_jax.objectives.corruption import Corruption, corrupt
from pplx_jax.objectives.token_prediction import Targets, masked_tokens, mean_cross_entropy
from pplx_jax.training.stages.text import TextStage


@dataclasses.dataclass(frozen=True)
class MaskedLMStage(TextStage):
    """A masked token is predicted from the hidden state at its own position; all masked tokens weigh the same.

    Attributes in addition to those of `TextStage`:
      mask_rate: probability with which a token is replaced with the mask token. Large BERT models are best at 0.4
        (arXiv 2202.08005).
    """

    mask_rate: float = 0.4

    name: ClassVar[str] = "masked_lm"
    summary: ClassVar[str] = "masked tokens of text"

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.mask_rate < 1, self, "mask_rate", "a number above 0 and below 1")

    def predicted_share(self):
        return self.mask_rate

    def targets(self, tokens: jax.Array, corruption: Corruption) -> Targets:
        """Returns which masked token each position predicts; tokens [B, L]."""
        return masked_tokens(tokens, corruption)

    def loss(self, model, batch, step):
        corruption = corrupt(
            batch["tokens"],
            batch["segment_ids"],
            batch["positions"],
            step.rng,
            mask_id=step.mask_id,
            min_time=self.mask_rate,
            max_time=self.mask_rate,
            random_length_share=0.0,
        )
        count = self.targets(batch["tokens"], corruption).total

        def terms(model, tokens, positions, corruption):
            hidden = model(corruption.inputs, corruption.segment_ids, positions)
            return mean_cross_entropy(hidden, model.output_table, self.targets(tokens, corruption), count), {}

        return self.sum_over_parts(terms, model, batch["tokens"], batch["positions"], corruption)
