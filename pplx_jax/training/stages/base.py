"""What a stage is to the training loop."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import numpy as np

from pplx_jax.data.batches.packed_batch import PackedBatch
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.models.transformer import Qwen3


@dataclasses.dataclass(frozen=True)
class Step:
    """What a loss may know of the step it is in.

    Attributes:
      rng: the step's own key.
      progress: share of the stage's steps done, float32 in [0, 1).
      mask_id: the vocabulary's mask token.
      learned: what the loss itself learns, by the names of `Stage.learned`.
    """

    rng: jax.Array
    progress: jax.Array
    mask_id: int
    learned: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


class Stage(Protocol):
    """A stage: the features it wants, a loss, what it logs. It has no loop of its own.

    Attributes:
      name: also the name of its folder.
      reads: the kind of example, a key of `data.tokens.kinds.KINDS`.
      batch_size: examples a step, over all devices.
      row_length: L of the packed rows.
    """

    @property
    def name(self) -> str: ...

    @property
    def reads(self) -> str: ...

    @property
    def predicts_tokens(self) -> bool:
        """Whether it trains a model's head; a stage that does not leaves it behind."""
        ...

    batch_size: int
    row_length: int

    def learned(self) -> dict[str, float]:
        """First values of scalars that belong to the loss and are trained with the model, such as a temperature."""
        ...

    def rows(self, table: TokenTable, multiple_of: int) -> int:
        """B, rows that a batch of examples of the table fills."""
        ...

    def features(self, table: TokenTable, indices: np.ndarray, rows: int, first_row: int = 0) -> PackedBatch:
        """The packed batch of these examples of the table; `first_row` is its place among the rows of a larger one."""
        ...

    def loss(self, model: Qwen3, batch: dict[str, jax.Array], step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss of a batch, and what to log beside it."""
        ...
