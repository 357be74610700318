"""Stage 1: masked diffusion pretraining (arXiv 2602.11151, section 2.1)."""

import dataclasses
from typing import ClassVar, get_args

from flax import nnx

from pplx_jax.core.errors import require
from pplx_jax.data.batches.batch_spec import TextBatch
from pplx_jax.objectives.corruption import corrupt
from pplx_jax.objectives.diffusion import Normalizer, count_targets, diffusion_loss
from pplx_jax.objectives.gradient_accumulation import sum_in_microbatches
from pplx_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class DiffusionStage(Stage):
    """Trains on texts only.

    Attributes:
      batch_size: examples per step; an example is `Lengths.text` tokens, filled with texts.
      row_length: tokens per sequence.
      normalizer: what the loss is divided by; see `diffusion_loss`.
      min_time: smallest t.
      random_length_share: share of the texts cut to a random length.
      microbatches: number of parts in which a batch is computed, one after another, with the memory of one. Corruption
        and normalisation are those of the whole batch, and so is the gradient (`sum_in_microbatches`).
    """

    batch_size: int
    row_length: int = 4096
    normalizer: Normalizer = "valid"
    min_time: float = 1e-3
    random_length_share: float = 0.01
    microbatches: int = 1

    name: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "masked diffusion on text"
    predicts_tokens: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("batch_size", "row_length", "microbatches"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(self.normalizer in get_args(Normalizer), self, "normalizer", " or ".join(get_args(Normalizer)))
        require(0 < self.min_time < 1, self, "min_time", "a number above 0 and below 1")
        require(0 <= self.random_length_share <= 1, self, "random_length_share", "a number from 0 to 1")

    @property
    def batch(self):
        return TextBatch(self.batch_size, self.row_length, microbatches=self.microbatches)

    def predicted_share(self):
        return (1 + self.min_time) / 2  # the mean of t, uniform in [min_time, 1)

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
        graph, params = nnx.split(model)
        counts = count_targets(corruption)

        def terms(params, part):
            model = nnx.merge(graph, params)
            tokens, positions, corruption = part
            hidden = model(corruption.inputs, corruption.segment_ids, positions)
            return diffusion_loss(
                hidden, model.output_table, tokens, corruption, normalizer=self.normalizer, counts=counts
            )

        return sum_in_microbatches(terms, params, (batch["tokens"], batch["positions"], corruption), self.microbatches)
