"""Evaluation of a stage while it trains: when, by what, which value was the best, and whether the stage ends early."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest
from pplx_jax.parallel.processes import from_first
from pplx_jax.training.settings import Training


class Evaluator(Protocol):
    """Computes metrics of the parameters in training. Every process calls it at the same step.

    It changes nothing that training depends on. The same parameters give the same numbers.
    """

    @property
    def metrics(self) -> Sequence[str]:
        """Names of what it returns, "eval/..."; known before anything is compiled."""
        ...

    def __call__(self, params: dict[str, Any]) -> Mapping[str, float]:
        """Returns the metrics by name. Collective.

        Args:
          params: `TrainState.result`, sharded over the mesh as in training. None of it may be kept.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluations so far by `Checkpointing.best_metric`; a part of every checkpoint.

    Attributes:
      metric: its name.
      top: (value, step) of the best evaluations, the best one first; of equal values the earlier one first.
      since: evaluations since the best one.
    """

    metric: str
    top: tuple[tuple[float, int], ...] = ()
    since: int = 0

    def with_value(self, value: float, step: int, keep: int) -> "Best":
        """Returns the record after one more evaluation; it holds the best `keep` values."""
        top = sorted([*self.top, (value, step)], key=lambda one: _order(self.metric, *one), reverse=True)[:keep]
        return Best(self.metric, tuple(top), 0 if top[0][1] == step else self.since + 1)


class Evaluations:
    """The evaluations of one stage.

    Args:
      training: the stage.
      evaluators: what is computed, in this order.

    Attributes:
      best: None if the stage names no best metric.

    Raises:
      BadInput: no evaluator has `Checkpointing.best_metric`, or there is nothing to evaluate.
    """

    def __init__(self, training: Training, evaluators: Sequence[Evaluator]):
        self._training, self._evaluators = training, evaluators
        self._latest: tuple[int, dict[str, float]] = (0, {})
        stage, metric = training.stage.name, training.checkpointing.best_metric
        names = [name for evaluator in evaluators for name in evaluator.metrics]
        if training.evaluation and not names:
            raise BadInput(
                f"{stage}: Training.evaluation has nothing to compute; set Evaluation.sets to BEIR folders, or "
                "Evaluation.held_out to a number of examples"
            )
        if metric and metric not in names:
            hint = nearest(metric, names) or f"; it has {', '.join(names)}"
            raise BadInput(f"Checkpointing.best_metric={metric!r}: no evaluation of the stage {stage} has it{hint}")
        self.best = Best(metric) if metric else None

    def resume(self, recorded: Mapping[str, Any] | None) -> None:
        """Continues from the `Best` that a checkpoint recorded, if it is of the same metric."""
        if self.best and recorded and recorded["metric"] == self.best.metric:
            top = tuple((value, step) for value, step in recorded["top"])
            self.best = Best(self.best.metric, top, recorded["since"])

    def due(self, step: int) -> bool:
        """Returns whether this step is evaluated."""
        settings = self._training.evaluation
        return settings is not None and settings.due(step, self._training.steps)

    def __call__(self, step: int, params: dict[str, Any]) -> dict[str, float]:
        """Evaluates the parameters after a step. Collective."""
        found: dict[str, float] = {}
        for evaluator in self._evaluators:
            found |= evaluator(params)
        # All processes decide from the same bits; the last bit could differ between kinds of processors.
        found = dict(zip(found, from_first(list(found.values())), strict=True))
        self._latest = step, found
        if self.best:
            self.best = self.best.with_value(found[self.best.metric], step, self._training.checkpointing.keep_best)
        return found

    def of_step(self, step: int) -> dict[str, float]:
        """Returns the metrics of this step; {} if it was not evaluated."""
        return self._latest[1] if self._latest[0] == step else {}

    def is_among_best(self, step: int) -> bool:
        """Returns whether the evaluation of this step is one of the best."""
        return self.best is not None and any(at == step for _, at in self.best.top)

    def goodness(self, metrics: Mapping[str, float], step: int) -> tuple[float, int]:
        """Returns what is higher for a better checkpoint: with these metrics, of this step."""
        assert self.best is not None
        value = metrics.get(self.best.metric)
        return (-math.inf, -step) if value is None else _order(self.best.metric, value, step)

    @property
    def ends(self) -> bool:
        """Whether there were `Evaluation.patience` evaluations in a row without a new best value."""
        settings = self._training.evaluation
        return bool(self.best and settings and settings.patience and self.best.since >= settings.patience)

    def summary(self, steps_done: int) -> dict[str, Any]:
        """Returns what `finished.json` tells about them."""
        if self.best is None or not self.best.top:  # none: `best_metric` was set after the last evaluation
            return {}
        value, step = self.best.top[0]
        best = {"best": {"metric": self.best.metric, "value": value, "step": step}}
        if steps_done == self._training.steps:
            return best
        return {**best, "ended_early": f"{self.best.metric} did not improve in {self.best.since} evaluations"}


def _order(metric: str, value: float, step: int) -> tuple[float, int]:
    """Returns what is higher for the better of two evaluations. Losses are best when they are low; NaN is the worst."""
    if math.isnan(value):
        return -math.inf, -step
    return (-value if metric.startswith("eval/loss/") else value), -step
