"""Autoregressive pretraining, to compare diffusion with: the same texts, without a change of the attention mask."""

import dataclasses
from typing import ClassVar

from pplx_jax.objectives.token_prediction import mean_cross_entropy, next_tokens
from pplx_jax.training.stages.text import TextStage


@dataclasses.dataclass(frozen=True)
class AutoregressiveStage(TextStage):
    """Each token of a text but the first is predicted from the tokens before it.

    The stage has a causal mask, whatever that of the recipe's model is; the stages after it have the model's.
    """

    name: ClassVar[str] = "autoregressive"
    summary: ClassVar[str] = "next tokens of text"
    causal: ClassVar[bool | None] = True

    def predicted_share(self):
        return 1.0

    def loss(self, model, batch, step):
        del step
        count = next_tokens(batch["tokens"], batch["segment_ids"]).total

        def terms(model, tokens, segment_ids, positions):
            hidden = model(tokens, segment_ids, positions)
            return mean_cross_entropy(hidden, model.output_table, next_tokens(tokens, segment_ids), count), {}

        return self.sum_over_parts(terms, model, batch["tokens"], batch["segment_ids"], batch["positions"])
