"""The training loop. All stages use it; no stage has a separate loop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from absl import logging

from pplx_jax.core.errors import Failed, Preempted
from pplx_jax.data.batches.host_batches import Batch, HostBatches
from pplx_jax.parallel.agreement import Agreement, PreemptionNotice
from pplx_jax.parallel.processes import at, is_first, over_processes
from pplx_jax.training.evaluators import Evaluations
from pplx_jax.training.goodput import Goodput
from pplx_jax.training.meter import Meter
from pplx_jax.training.nonfinite import first_nonfinite
from pplx_jax.training.out_of_memory import DeviceMemory
from pplx_jax.training.profiling import step_scope
from pplx_jax.training.settings import Training
from pplx_jax.training.train_state import TrainState


class NonFiniteLoss(Failed):
    """A metric is not finite: the message names the stage, the step, the metric, the first non-finite array and the
    setting that skips such a step."""


class Hook(Protocol):
    """Other work around a step. Hooks are called in order, by every process at the same step."""

    def before_step(self, step: int) -> None:
        """Called before the batch of a step is read."""

    def on_log(self, step: int, numbers: dict[str, float]) -> None:
        """Called with the finite metrics of a logged step; may add metrics for later hooks.

        A step that was skipped (`Training.skip_nonfinite`) has no "loss".
        """

    def after_step(self, step: int, state: TrainState) -> None:
        """Called after each step, before its checkpoint is saved."""


class Trainer:
    """Runs the steps of a stage in a fixed order of phases.

    Args:
      training: the stage.
      step_function: (state, batch) -> (state, metrics), compiled as needed.
      state: initial state.
      first_step: steps already done.
      batches: at the position that belongs to the state.
      save: (step, state, position) -> None, starts saving a checkpoint.
      loss_of: (params, batch, step) -> (loss, metrics), to find the cause of a non-finite step.
      evaluations: of the stage; their metrics join those of the step before the hooks see them.
      hooks: called in this order.
      clock: counts what the time is spent on.
      now: returns seconds, for when checkpoints are due.

    Attributes:
      state: after the last step that was done.
      steps_done: number of that step.
    """

    def __init__(
        self,
        training: Training,
        step_function: "CompiledStep",
        state: TrainState,
        first_step: int,
        batches: HostBatches,
        *,
        mesh: jax.sharding.Mesh,
        save: Callable[[int, TrainState, int], None],
        loss_of: Callable[..., Any],
        evaluations: Evaluations,
        hooks: Sequence[Hook],
        clock: "StepClock",
        now: Callable[[], float],
    ):
        self.state, self.steps_done, self.last_step = state, first_step, training.steps
        self._evaluations = evaluations
        self._training, self._step_function, self._batches = training, step_function, batches
        self._save, self._loss_of, self._hooks, self._clock = save, loss_of, hooks, clock
        self._stopping = _Decisions(training, mesh, now)
        self._skipped = int(jax.device_get(state.skipped))
        self._unfetched: list[tuple[int, dict[str, jax.Array]]] = []  # metrics that are still on the devices

    def run(self) -> bool:
        """Runs the remaining steps, to the last one or to an evaluation that ends the stage.

        Returns:
          Whether SIGTERM came during the last steps, to any process.

        Raises:
          NonFiniteLoss: a metric is not finite, in more steps than `Training.skip_nonfinite`.
          Preempted: SIGTERM came to any process; the state is saved.
        """
        # Every process runs the same phases in this order. Deciding, fetching for a log and saving are collective: if
        # one process left one out, the others would block. Metrics are checked before hooks see them and before a
        # save, so no non-finite parameters are ever saved. An evaluation comes before the save of its step: the
        # checkpoint has its result, so a resumed stage decides alike.
        name = self._training.stage.name
        with self._stopping:
            while self.steps_done < self.last_step and not self._evaluations.ends:
                step = self.steps_done + 1
                for hook in self._hooks:
                    hook.before_step(step)
                with step_scope(step):
                    at(f"{name} step {step}, reading the batch")
                    batch = self._clock.read(self._batches)
                    at(f"{name} step {step}")
                    self.state, metrics = self._step_function(self.state, batch.arrays)
                    self._unfetched.append((step, metrics))
                    saves, stops = self._stopping.decide(step, self.state.step)
                evaluates = self._evaluations.due(step)
                logs = evaluates or self._training.logging.due(step, self.last_step)
                numbers = self._fetch(batch.position) if logs or saves else {}
                if evaluates:
                    at(f"{name} step {step}, evaluating")
                    with self._clock.spending("evaluation"):
                        numbers |= self._evaluations(step, self.state.result)
                    saves = saves or self._evaluations.is_among_best(step) or self._evaluations.ends
                if logs:
                    for hook in self._hooks:
                        hook.on_log(step, numbers)
                for hook in self._hooks:
                    hook.after_step(step, self.state)
                if saves:
                    with self._clock.spending("checkpoint"):
                        self._save(step, self.state, batch.position)
                    self._stopping.saved()
                self._clock.end_step()
                self.steps_done = step
                if stops and step < self.last_step and not self._evaluations.ends:
                    raise Preempted(
                        f"{self._training.stage.name}: asked to stop at step {step}, which is saved; the same command "
                        "resumes from there",
                        together=True,
                    )
            return self._stopping.any_process_was_asked()

    def _fetch(self, position: int) -> dict[str, float]:
        """Returns the finite metrics of the latest step; checks those of the unfetched steps before it, too.

        Raises:
          NonFiniteLoss: one is not finite, in a step that is not skipped.
        """
        stage, tolerated = self._training.stage, self._training.skip_nonfinite
        numbers: dict[str, float] = {}
        fetched = jax.device_get([metrics for _, metrics in self._unfetched])
        last = self._unfetched[-1][0]
        for (step, _), values in zip(self._unfetched, fetched, strict=True):
            numbers = {name: float(value) for name, value in values.items()}
            try:
                _require_finite(stage.name, step, numbers)
            except NonFiniteLoss as error:
                skipped = int(numbers["skipped"])
                if self._skipped < skipped <= tolerated:
                    self._skipped = skipped
                    logging.warning("%s: the step is skipped, %d of at most %d", error, skipped, tolerated)
                    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
                    continue
                # The state is still the one before the failed step: `make_step` does not change it afterwards.
                batch = self._batches.at(position - (last - step + 1) * stage.batch.batch_size)
                array = first_nonfinite(self._loss_of, self.state.params, batch.arrays, jnp.int32(step - 1))
                message = f"{error}; the last checkpoint is from before it; first array that is not finite: {array}"
                if skipped > self._skipped:
                    setting = f"--gin_param={stage.name}/Training.skip_nonfinite={skipped}"
                    message += f". The same command meets this step again: to go on without it, add {setting}"
                raise NonFiniteLoss(message) from None
        self._unfetched.clear()
        return numbers


class CompiledStep:
    """A jitted step, compiled once per batch shape: another mixture may need another number of sequences.

    Args:
      step: the step.
      clock: counts the time of compilation.
      memory: learns what the batch and the step need.

    Attributes:
      compile_seconds: time spent on compilation so far.
    """

    def __init__(self, step: jax.stages.Wrapped, clock: "StepClock", memory: DeviceMemory):
        self._step, self._clock, self._memory = step, clock, memory
        self._compiled: dict[tuple[int, ...], jax.stages.Compiled] = {}
        self.compile_seconds = 0.0

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        shape = batch["tokens"].shape
        if shape not in self._compiled:
            self._memory.batch, self._memory.temporary_bytes = _layout(batch), None
            with self._clock.spending("compile") as spent:
                self._compiled[shape] = self._step.lower(state, batch).compile()
            self.compile_seconds += spent[0]
            if analysis := self._compiled[shape].memory_analysis():
                self._memory.temporary_bytes = analysis.temp_size_in_bytes
        return self._compiled[shape](state, batch)


def _layout(batch: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), batch)


class StepClock:
    """Counts what the seconds of a step are spent on, for the goodput and the rates."""

    def __init__(self, goodput: Goodput, meter: Meter):
        self._goodput, self._meter = goodput, meter
        self._spent: dict[str, float] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[list[float]]:
        """Counts the seconds of the block as `what`; yields a list that holds them afterwards."""
        started, seconds = time.monotonic(), [0.0]
        yield seconds
        seconds[0] = time.monotonic() - started
        self._spend(what, seconds[0])

    def read(self, batches: HostBatches) -> Batch:
        """Returns the next batch; counts the wait for it."""
        waited = batches.wait_seconds
        batch = next(batches)
        waited = batches.wait_seconds - waited
        self._spend("data_wait", waited)
        self._meter.read(batch.counts, batch.tokens, waited)
        return batch

    def end_step(self) -> None:
        """Counts as useful the seconds of the step that are not counted otherwise."""
        now = time.monotonic()
        self._goodput.spent("useful", now - self._began - sum(self._spent.values()))
        for what, seconds in self._spent.items():
            self._goodput.spent(what, seconds)
        self._began, self._spent = now, {}

    def _spend(self, what: str, seconds: float) -> None:
        self._spent[what] = self._spent.get(what, 0.0) + seconds
        if what != "data_wait":
            self._meter.lost(what, seconds)


class _Decisions:
    """Decides at each step, for all processes alike, whether to save and whether to stop."""

    def __init__(self, training: Training, mesh: jax.sharding.Mesh, now: Callable[[], float]):
        self._checkpointing, self._last_step, self._now = training.checkpointing, training.steps, now
        self._agreed, self._notice = Agreement(mesh, requests=2), PreemptionNotice()
        self._requested, self._saved_at = False, now()

    def __enter__(self) -> "_Decisions":
        self._notice.__enter__()
        self._saved_at = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        self._notice.__exit__(*error)

    def decide(self, step: int, device_step: jax.Array) -> tuple[bool, bool]:
        """Returns whether to save and whether to stop after this step. The clock of the first process decides."""
        by_step, by_clock = self._checkpointing.due(step, self._now() - self._saved_at)
        requests = is_first() and not self._requested and by_clock
        self._requested = self._requested or requests
        is_due, stops = self._agreed(device_step, requests, self._notice.given)
        return is_due or stops or by_step or step == self._last_step, stops

    def saved(self) -> None:
        """Restarts the clock for the next checkpoint."""
        self._saved_at, self._requested = self._now(), False

    def any_process_was_asked(self) -> bool:
        """Returns whether SIGTERM came to any process. In the last steps not every process knows it yet. Collective."""
        return bool(over_processes({"stops": self._notice.given})["stops"].any())


def _require_finite(stage: str, step: int, numbers: dict[str, float]) -> None:
    for name in sorted(numbers, key=lambda name: name != "loss"):  # the loss comes first in the message
        if not math.isfinite(numbers[name]):
            raise NonFiniteLoss(f"{stage} step {step}: {name} is {numbers[name]}")
