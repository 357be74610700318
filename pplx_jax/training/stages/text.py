"""The common part of the stages that predict the tokens of texts: their fields, and microbatches."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from pplx_jax.core.errors import require
from pplx_jax.data.batches.batch_spec import TextBatch
from pplx_jax.models.transformer import Qwen3
from pplx_jax.objectives.gradient_accumulation import sum_in_microbatches
from pplx_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class TextStage(Stage):
    """Base class of the stages that train on texts only.

    Attributes:
      batch_size: examples per step; an example is `Lengths.text` tokens, filled with texts.
      row_length: tokens per sequence.
      microbatches: number of parts in which a batch is computed, one after another, with the memory of one. Corruption
        and normalisation are those of the whole batch, and so is the gradient (`sum_in_microbatches`).
    """

    batch_size: int
    row_length: int = 4096
    microbatches: int = 1

    predicts_tokens: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("batch_size", "row_length", "microbatches"):
            require(getattr(self, name) >= 1, self, name, "1 or more")

    @property
    def batch(self):
        return TextBatch(self.batch_size, self.row_length, microbatches=self.microbatches)

    def sum_over_parts(
        self, terms: Callable[..., tuple[jax.Array, Any]], model: Qwen3, *arrays: Any
    ) -> tuple[jax.Array, Any]:
        """Adds up `terms(model, *part of each array)` over the microbatches; see `sum_in_microbatches`."""
        graph, params = nnx.split(model)

        def of_part(params, part):
            return terms(nnx.merge(graph, params), *part)

        return sum_in_microbatches(of_part, params, arrays, self.microbatches)
