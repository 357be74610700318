"""Stage 1: masked diffusion pretraining (arXiv 2602.11151, section 2.1)."""

import dataclasses
from typing import ClassVar, get_args

from pplx_jax.core.errors import require
from pplx_jax.objectives.corruption import corrupt
from pplx_jax.objectives.diffusion import Normalizer, count_targets, diffusion_loss
from pplx_jax.objectives.token_prediction import masked_next_tokens
from pplx_jax.training.stages.text import TextStage


@dataclasses.dataclass(frozen=True)
class DiffusionStage(TextStage):
    """Masks each text at a rate of its own, and weights its loss by one over the rate.

    Attributes in addition to those of `TextStage`:
      normalizer: what the loss is divided by; see `diffusion_loss`.
      min_time: smallest t.
      random_length_share: share of the texts cut to a random length.
    """

    normalizer: Normalizer = "valid"
    min_time: float = 1e-3
    random_length_share: float = 0.01

    name: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "masked diffusion on text"

    def __post_init__(self):
        super().__post_init__()
        require(self.normalizer in get_args(Normalizer), self, "normalizer", " or ".join(get_args(Normalizer)))
        require(0 < self.min_time < 1, self, "min_time", "a number above 0 and below 1")
        require(0 <= self.random_length_share <= 1, self, "random_length_share", "a number from 0 to 1")

    def predicted_share(self):
        return (1 + self.min_time) / 2  # the mean of t, uniform in [min_time, 1)

    def targets(self, tokens, corruption):
        return masked_next_tokens(tokens, corruption)

    def loss(self, model, batch, step):
        corruption = corrupt(
            batch["tokens"],
            batch["segment_ids"],
            batch["positions"],
            step.rng,
            mask_id=step.mask_id,
            min_time=self.min_time,
            random_length_share=self.random_length_share,
        )
        counts = count_targets(corruption)

        def terms(model, tokens, positions, corruption):
            hidden = model(corruption.inputs, corruption.segment_ids, positions)
            return diffusion_loss(
                hidden, model.output_table, tokens, corruption, normalizer=self.normalizer, counts=counts
            )

        return self.sum_over_parts(terms, model, batch["tokens"], batch["positions"], corruption)
