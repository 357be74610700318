"""The common part of the contrastive stages: their fields, and the path from a packed batch to a loss."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from pplx_jax.core.errors import BadInput, require
from pplx_jax.kernels.quantization import Rounding
from pplx_jax.models.embedding import embed
from pplx_jax.models.transformer import Qwen3
from pplx_jax.objectives.gradient_cache import encode_in_microbatches
from pplx_jax.objectives.matryoshka import matryoshka
from pplx_jax.training.stages.base import Stage, Step

_SEQUENCE_ARRAYS = ("tokens", "segment_ids", "positions", "chunk_ids")
_LOG_TEMPERATURE = "log_temperature_above_least"


@dataclasses.dataclass(frozen=True)
class ContrastiveStage(Stage):
    """Base class of the contrastive stages.

    Attributes:
      batch_size: N, examples per step; the documents of all of them are candidates for every query.
      row_length: L, tokens per sequence; a longer text is cut.
      slots: S, most texts per sequence.
      microbatches: number of parts in which a batch is encoded, one after another, with the memory of one. The loss
        sees the whole batch and the gradient is the same (`encode_in_microbatches`).
      temperature: tau; the scale of the logits is 1 / tau.
      learn_temperature: train tau too, starting from `temperature`.
      least_temperature: lower bound of a learned tau (CLIP's bound on the scale of logits, arXiv 2103.00020).
      rounding: of the INT8 quantization in training.
      prefixes: MRL dimensions, including the full width; empty for none.
      prefix_weights: one for each of the `prefixes`; equal if empty.
      source_weights: (source, weight) pairs: the weight of a query of that source in the loss; 1 for other sources.
        Its document is a negative of other queries at any weight.
    """

    batch_size: int
    row_length: int = 512
    slots: int = 32
    microbatches: int = 1
    temperature: float = 0.02
    learn_temperature: bool = False
    least_temperature: float = 0.01
    rounding: Rounding = "half_even"
    prefixes: tuple[int, ...] = ()
    prefix_weights: tuple[float, ...] = ()
    source_weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        what = type(self).__name__
        for name in ("batch_size", "row_length", "slots", "microbatches"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(self.rounding in get_args(Rounding), self, "rounding", " or ".join(get_args(Rounding)))
        if self.temperature <= 0:
            raise BadInput(f"{what}.temperature={self.temperature} is not above 0")
        if self.learn_temperature and not 0 < self.least_temperature < self.temperature:
            raise BadInput(
                f"{what}.least_temperature={self.least_temperature} is not between 0 and the temperature "
                f"{self.temperature} that learning starts from"
            )
        require(all(dim >= 1 for dim in self.prefixes), self, "prefixes", "1 or more dimensions each, or () for none")
        require(all(weight >= 0 for weight in self.prefix_weights), self, "prefix_weights", "0 or more each")
        if self.prefix_weights and len(self.prefix_weights) != len(self.prefixes):
            raise BadInput(
                f"{what}: {len(self.prefixes)} prefixes with {len(self.prefix_weights)} prefix_weights; give one each"
            )
        for source, weight in self.source_weights:
            if not 0 <= weight < math.inf:
                raise BadInput(f"{what}.source_weights: {source!r} weighs {weight}; give 0 or more")

    def _shape(self) -> dict[str, Any]:
        """Returns the fields of `PairBatch` that every contrastive stage sets."""
        return {
            "batch_size": self.batch_size,
            "length": self.row_length,
            "slots": self.slots,
            "microbatches": self.microbatches,
            "source_weights": self.source_weights,
        }

    def learned(self):
        if not self.learn_temperature:
            return {}
        return {_LOG_TEMPERATURE: math.log(self.temperature - self.least_temperature)}

    def temperature_at(self, step: Step) -> jax.Array | float:
        """Returns tau. A learned tau is `least_temperature` plus an exponential, so its gradient is never zero."""
        if not self.learn_temperature:
            return self.temperature
        return self.least_temperature + jnp.exp(step.learned[_LOG_TEMPERATURE])

    def embed(self, model: Qwen3, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns pooled vectors v [B, S, D] of the batch and their tokens [B, S]; see `models.embedding.embed`."""
        sequences = {name: batch[name] for name in _SEQUENCE_ARRAYS}
        if self.microbatches == 1:
            return embed(model, sequences, self.slots)
        graph, params = nnx.split(model)

        def encode(params, sequences):
            return embed(nnx.merge(graph, params), sequences, self.slots)

        return encode_in_microbatches(encode, params, sequences, self.microbatches)

    def objective(self, loss: Callable, step: Step) -> Callable:
        """Returns `loss` with the temperature of this step, averaged over the prefixes if there are any.

        Args:
          loss: takes embeddings [..., D] as positional arguments and everything else by keyword, including
            `temperature`; returns (scalar, metrics).
          step: the step.
        """
        over_prefixes = matryoshka(loss, self.prefixes, self.prefix_weights or None) if self.prefixes else loss

        def at_temperature(*embeddings, **arguments):
            temperature = self.temperature_at(step)
            value, metrics = over_prefixes(*embeddings, temperature=temperature, **arguments)
            return value, metrics | ({"temperature": temperature} if self.learn_temperature else {})

        return at_temperature
