"""What the contrastive stages share: how their rows are encoded, and what any of their losses may be turned into."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pplx_jax.core.errors import BadInput, require
from pplx_jax.data.batches.packed_batch import rows_needed
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.kernels.quantization import Rounding
from pplx_jax.models.embedding import embed
from pplx_jax.models.transformer import Qwen3
from pplx_jax.objectives.gradient_cache import encode_in_microbatches
from pplx_jax.objectives.matryoshka import matryoshka
from pplx_jax.training.stages.base import Step

_ROW_ARRAYS = ("tokens", "segment_ids", "positions", "chunk_ids")
_LOG_TEMPERATURE = "log_temperature_above_least"


@dataclasses.dataclass(frozen=True)
class ContrastiveStage:
    """Fields of every contrastive stage.

    Attributes:
      batch_size: examples a step, all of them candidates for every query.
      row_length: tokens a row; a longer text is cut.
      slots: most texts a row.
      microbatches: parts that a batch is encoded in, one after another, at the memory of one; the loss still sees
        the whole batch and the gradient is the same (`encode_in_microbatches`).
      temperature: tau.
      learn_temperature: train tau too, from `temperature` on.
      least_temperature: a learned tau stays above it (CLIP's bound on the scale of logits, arXiv 2103.00020).
      rounding: of the INT8 quantization trained in.
      prefixes: MRL dims, the full width among them; empty for none.
      prefix_weights: of each of the `prefixes`; equal where empty.
      source_weights: (source, weight) pairs: what a query of that source counts in the loss, 1 where none is named.
        Its document serves as a negative at any weight.
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

    name: ClassVar[str]
    predicts_tokens: ClassVar[bool] = False

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

    def learned(self) -> dict[str, float]:
        """First values of what the loss itself learns."""
        if not self.learn_temperature:
            return {}
        return {_LOG_TEMPERATURE: math.log(self.temperature - self.least_temperature)}

    def temperature_at(self, step: Step) -> jax.Array | float:
        """tau; a learned one is its least value and the exponential of what is learned, so it has a gradient
        everywhere."""
        if not self.learn_temperature:
            return self.temperature
        return self.least_temperature + jnp.exp(step.learned[_LOG_TEMPERATURE])

    @property
    def hard_negatives(self) -> int | None:
        """Mined documents that each example brings along; None in a stage without them."""
        return None

    def rows(self, table: TokenTable, multiple_of: int) -> int:
        """B: every device takes an equal share of the rows of each microbatch."""
        return rows_needed(
            table,
            self.name,
            self.batch_size,
            self.row_length,
            slots=self.slots,
            negatives=self.hard_negatives,
            multiple_of=multiple_of * self.microbatches,
        )

    def query_weights(self, table: TokenTable, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`weight` [N] float32 by the sources of the examples; nothing where all weigh the same.

        Raises:
          BadInput: the table knows no sources, or none of a name that is weighed.
        """
        if not self.source_weights:
            return {}
        names = table.manifest.get("sources", []) if "source" in table else []
        unknown = [source for source, _ in self.source_weights if source not in names]
        if unknown:
            raise BadInput(
                f"{type(self).__name__}.source_weights: no source {unknown[0]!r} in {table.folder}, which has "
                f"{', '.join(names) or 'none'}"
            )
        weight_of = np.ones(len(names), np.float32)
        for source, weight in self.source_weights:
            weight_of[names.index(source)] = weight
        return {"weight": weight_of[table["source"][indices]]}

    def query_hashes(self, table: TokenTable, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`query_hash` [N] int32: the CRC of each query's tokens; equal for copies of a query."""
        return {"query_hash": token_hashes(table["query"][row] for row in indices)}

    def embed(self, model: Qwen3, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Pooled vectors v [B, S, D] of the batch and the tokens of each [B, S]; see `models.embedding.embed`."""
        graph, params = nnx.split(model)

        def encode(params, rows):
            return embed(nnx.merge(graph, params), rows, self.slots)

        return encode_in_microbatches(encode, params, {name: batch[name] for name in _ROW_ARRAYS}, self.microbatches)

    def objective(self, loss: Callable, step: Step) -> Callable:
        """`loss` at this step's temperature, over every prefix where there are some.

        Args:
          loss: takes embeddings [..., D] as positional arguments and anything else by keyword, `temperature` among
            them; returns (scalar, metrics).
          step: the step.
        """
        over_prefixes = matryoshka(loss, self.prefixes, self.prefix_weights or None) if self.prefixes else loss

        def at_temperature(*embeddings, **arguments):
            temperature = self.temperature_at(step)
            value, metrics = over_prefixes(*embeddings, temperature=temperature, **arguments)
            return value, metrics | ({"temperature": temperature} if self.learn_temperature else {})

        return at_temperature
