"""Settings of one stage in a recipe: `Training` and its groups."""

import dataclasses
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput, require
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.training.ema import Ema
from pplx_jax.training.metrics_writers import TensorBoard, Writer
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """When checkpoints are saved and which are kept. There is always one at the last step of a stage.

    Attributes:
      every_seconds: wall time between checkpoints; 0 for none by time.
      every_steps: saves at the multiples of this step; 0 for none.
      keep: number of latest checkpoints kept. With 1, there is no earlier one to fall back on if it is damaged.
      keep_every_steps: checkpoints at multiples of this step are kept too; 0 for none.
      keep_every_seconds: one checkpoint per this much wall time is kept too; 0 for none.
    """

    every_seconds: float = 600.0
    every_steps: int = 0
    keep: int = 2
    keep_every_steps: int = 0
    keep_every_seconds: float = 0.0

    def __post_init__(self):
        require(self.keep >= 1, self, "keep", "1 or more")
        for name in ("every_seconds", "every_steps", "keep_every_steps", "keep_every_seconds"):
            require(getattr(self, name) >= 0, self, name, "0 or more")

    def due(self, step: int, seconds_since_last: float) -> tuple[bool, bool]:
        """Returns whether a checkpoint is due by the step, and whether by the clock."""
        by_step = bool(self.every_steps) and step % self.every_steps == 0
        return by_step, bool(self.every_seconds) and seconds_since_last > self.every_seconds


@dataclasses.dataclass(frozen=True)
class Logging:
    """When numbers are fetched from the devices and written.

    Attributes:
      every_steps: metrics are written at multiples of this step, and at the first and the last step.
      profile_steps: (first, last) steps to record with JAX's profiler, into the stage's folder; () for none.
      writers: where metrics go besides metrics.jsonl: `TensorBoard`, `WeightsAndBiases`, or your own `Writer`.
    """

    every_steps: int = 20
    profile_steps: tuple[int, ...] = ()
    writers: Sequence[Writer] = (TensorBoard(),)

    def __post_init__(self):
        require(self.every_steps >= 1, self, "every_steps", "1 or more")
        steps = self.profile_steps
        if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            raise BadInput(f"Logging.profile_steps={steps}; set it to (first, last), or () for none")

    def due(self, step: int, last: int) -> bool:
        """Returns whether the metrics of this step are written."""
        return step % self.every_steps == 0 or step in (1, last)


@dataclasses.dataclass(frozen=True)
class Training:
    """One stage of a recipe.

    Attributes:
      stage: batches and loss.
      optimizer: of the stage.
      steps: optimizer steps.
      data: which sources are read when; if None, all in proportion to their examples.
      packing_groups: parts of a batch that are packed separately. Batches depend on it, not on the number of
        processes. `plan --rehearse` gives the smallest number with which processes share the work of packing.
      checkpointing: when checkpoints are saved, which are kept.
      logging: when metrics are written.
      remat_policy: which intermediate results of a block are saved for the backward pass, see
        `Qwen3Config.remat_policy`; if None, that of the model. What fits in memory depends on the batch.
      skip_nonfinite: number of steps whose loss or gradient may be non-finite: each leaves parameters and optimizer as
        they are, and the stage goes on with the next batch. One more such step fails the stage.
      ema_decay: decay of a moving average of the parameters (`Ema`), such as 0.999; 0 for none. The average is the
        stage's result: evaluation, later stages, merge and export use it.
      ema_warmup: whether the decay warms up, which suits a start from random parameters.
    """

    stage: Stage
    optimizer: Optimizer
    steps: int
    data: Mixture | Curriculum | None = None
    packing_groups: int = 1
    checkpointing: Checkpointing = Checkpointing()
    logging: Logging = Logging()
    remat_policy: tuple[str, ...] | None = None
    skip_nonfinite: int = 0
    ema_decay: float = 0.0
    ema_warmup: bool = False

    def __post_init__(self):
        for name in ("steps", "packing_groups"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(self.skip_nonfinite >= 0, self, "skip_nonfinite", "0 or more steps")
        require(0 <= self.ema_decay < 1, self, "ema_decay", "a number from 0 (no average) to below 1")

    @property
    def ema(self) -> Ema | None:
        """The moving average of the parameters; None for none."""
        return Ema(self.ema_decay, self.ema_warmup) if self.ema_decay else None

    def model(self, config: Qwen3Config) -> Qwen3Config:
        """Returns the encoder as this stage trains it: without a head if the stage predicts no tokens."""
        tied = config.tied or not self.stage.predicts_tokens
        policy = config.remat_policy if self.remat_policy is None else self.remat_policy
        return dataclasses.replace(config, tied=tied, remat_policy=policy)
