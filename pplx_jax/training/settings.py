"""Settings of one stage in a recipe: `Training` and its groups."""

import dataclasses
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput, require
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.kernels.attention import Preferred
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
      best_metric: a metric of `Evaluation`, such as "eval/mean/ndcg@10": a checkpoint is saved at each evaluation whose
        value is among the best, and `Evaluation.patience` counts those that are not a new best. Losses are best when
        they are low, all other metrics when they are high.
      keep_best: number of checkpoints with the best values that are kept too.
      use_best: whether the best checkpoint is the model of the stage: the one that scores, later stages, merge, export
        and every other reader of the stage's folder take. By default they take the latest.
    """

    every_seconds: float = 600.0
    every_steps: int = 0
    keep: int = 2
    keep_every_steps: int = 0
    keep_every_seconds: float = 0.0
    best_metric: str | None = None
    keep_best: int = 1
    use_best: bool = False

    def __post_init__(self):
        for name in ("keep", "keep_best"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        if self.use_best and self.best_metric is None:
            raise BadInput("Checkpointing.use_best needs Checkpointing.best_metric; name the metric of the best")
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
class Evaluation:
    """Evaluation of a stage while it trains. Its metrics are logged with those of the step.

    | metric | of |
    |---|---|
    | `eval/SET/ndcg@10`, `eval/SET/recall@100` | a retrieval set, by cosine of INT8 vectors of texts encoded alone |
    | `eval/SET/with_context/ndcg@10`, ... | the same with passages encoded in their documents; contextual stages only |
    | `eval/mean/ndcg@10`, ... | the mean over the sets |
    | `eval/loss/SOURCE` | the held-out examples of a source: the loss of the stage at its last step |
    | `eval/loss/mean` | the mean over the sources |

    Attributes:
      every_steps: evaluates at multiples of this step, and at the last step.
      sets: BEIR folders, or folders of BEIR folders; None for the evaluation sets of the recipe's corpus, () for none.
      queries: most queries of a set; 0 for all.
      documents: most passages of a set, after those of the documents that are judged for a query; 0 for all.
      held_out: examples of each source that are kept out of training, the last ones of its token table; 0 for none.
        They are evaluated in batches of the stage's size, or in one smaller batch. A source that would have fewer left
        than it holds out, or fewer than a batch, holds none out.
      patience: the stage ends after this many evaluations in a row without a new best `Checkpointing.best_metric`; 0
        for never.
    """

    every_steps: int
    sets: tuple[str, ...] | None = None
    queries: int = 0
    documents: int = 0
    held_out: int = 0
    patience: int = 0

    def __post_init__(self):
        require(self.every_steps >= 1, self, "every_steps", "1 or more")
        for name in ("queries", "documents", "held_out", "patience"):
            require(getattr(self, name) >= 0, self, name, "0 or more")

    def due(self, step: int, last: int) -> bool:
        """Returns whether this step is evaluated."""
        return step % self.every_steps == 0 or step == last


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
      attention_implementation: of the attention, see `Qwen3Config.attention_implementation`; if None, that of the
        model. It is refused on devices that do not have it, and the stage's model keeps it.
      evaluation: when and on what the stage is evaluated while it trains; None for never.
      skip_nonfinite: number of steps whose loss or gradient may be non-finite: each leaves parameters and optimizer as
        they are, and the stage goes on with the next batch. One more such step fails the stage.
      ema_decay: decay of a moving average of the parameters (`Ema`), such as 0.999; 0 for none. The average is the
        stage's result: evaluation, later stages, merge and export use it.
      ema_warmup: whether the decay warms up, which suits a start from random parameters.
      starts_from: name of the stage whose parameters it starts from; None for the one that the stage names.
      initial_share: share of the initial weights in the parameters that it starts from: 0 gives those of the earlier
        stage, 1 the initial weights, a number between them their SLERP, one angle for each tensor.
    """

    stage: Stage
    optimizer: Optimizer
    steps: int
    data: Mixture | Curriculum | None = None
    packing_groups: int = 1
    checkpointing: Checkpointing = Checkpointing()
    logging: Logging = Logging()
    remat_policy: tuple[str, ...] | None = None
    attention_implementation: Preferred | None = None
    evaluation: Evaluation | None = None
    skip_nonfinite: int = 0
    ema_decay: float = 0.0
    ema_warmup: bool = False
    starts_from: str | None = None
    initial_share: float = 0.0

    def __post_init__(self):
        for name in ("steps", "packing_groups"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(self.skip_nonfinite >= 0, self, "skip_nonfinite", "0 or more steps")
        require(0 <= self.ema_decay < 1, self, "ema_decay", "a number from 0 (no average) to below 1")
        require(0 <= self.initial_share <= 1, self, "initial_share", "a number from 0 to 1")
        best = self.checkpointing.best_metric
        if best and self.evaluation is None:
            raise BadInput(f"Checkpointing.best_metric={best!r} needs Training.evaluation; bind it to @Evaluation()")
        if self.evaluation and self.evaluation.patience and not best:
            raise BadInput("Evaluation.patience needs Checkpointing.best_metric; name the metric that must improve")

    @property
    def evaluates_retrieval(self) -> bool:
        """Whether it is evaluated on retrieval sets while it trains."""
        return self.evaluation is not None and self.evaluation.sets != ()

    @property
    def held_out(self) -> int:
        """Examples of each source that are kept out of training."""
        return self.evaluation.held_out if self.evaluation else 0

    @property
    def ema(self) -> Ema | None:
        """The moving average of the parameters; None for none."""
        return Ema(self.ema_decay, self.ema_warmup) if self.ema_decay else None

    def model(self, config: Qwen3Config) -> Qwen3Config:
        """Returns the encoder as this stage trains it: with its mask, and without a head if it predicts no tokens."""
        tied = config.tied or not self.stage.predicts_tokens
        policy = config.remat_policy if self.remat_policy is None else self.remat_policy
        causal = config.causal if self.stage.causal is None else self.stage.causal
        attention = self.attention_implementation or config.attention_implementation
        return dataclasses.replace(
            config, tied=tied, causal=causal, remat_policy=policy, attention_implementation=attention
        )

    @property
    def earlier_stage(self) -> str | None:
        """Name of the stage that this one starts from, if the recipe has it."""
        return self.starts_from or self.stage.starts_from


def chosen_stages(stages: Sequence[Training], name: str | None) -> list[Training]:
    """Returns the stage of a recipe with this name, or all stages if `name` is None.

    Raises:
      BadInput: the recipe has no such stage.
    """
    chosen = [training for training in stages if name in (None, training.stage.name)]
    if not chosen:
        known = ", ".join(training.stage.name for training in stages)
        raise BadInput(f"--stage {name}: the recipe has no such stage; it has {known}")
    return chosen
