"""Trains one stage: starts it, runs the trainer, finishes it."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from pplx_jax.checkpoints.model_folder import describe_model
from pplx_jax.checkpoints.orbax import Checkpoints, Keep, Restored
from pplx_jax.checkpoints.saved_params import select_checkpoint
from pplx_jax.core.errors import Preempted
from pplx_jax.core.files import read_json, write_json, write_text
from pplx_jax.core.log_folder import LogFolder
from pplx_jax.core.progress import Progress
from pplx_jax.core.resume_check import require_same, settings_of
from pplx_jax.data.batches.examples import Tables
from pplx_jax.data.batches.host_batches import HostBatches
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.data.tokens.open_tables import digest_of
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh, batch_sharding, replicated
from pplx_jax.parallel.model_info import model_info
from pplx_jax.parallel.processes import is_first
from pplx_jax.training.evaluators import Evaluations, Evaluator
from pplx_jax.training.goodput import Goodput
from pplx_jax.training.held_out import HeldOutLoss
from pplx_jax.training.meter import Meter
from pplx_jax.training.metrics import MetricsWriter, memory_numbers
from pplx_jax.training.metrics_writers import LoggedStage
from pplx_jax.training.out_of_memory import DeviceMemory, explained
from pplx_jax.training.profiling import StepProfile
from pplx_jax.training.settings import Training
from pplx_jax.training.stage_check import check_stage
from pplx_jax.training.starting_point import starting_params
from pplx_jax.training.train_state import (
    TrainState,
    make_step,
    model_params,
    new_state,
    stage_loss,
    state_layout,
    trained_params,
)
from pplx_jax.training.trainer import CompiledStep, Hook, StepClock, Trainer

FINISHED = "finished.json"
COMPUTES = "computes"  # key in `FINISHED` and in the metadata of a checkpoint: settings that `resume_check` compares
_CONTINUED = ("metrics.jsonl", "goodput.json", "wandb.json")  # logs that a later start of the stage continues


def train(
    folder: pathlib.Path,
    training: Training,
    config: Qwen3Config,
    table: TokenTable | Tables,
    vocabulary: Vocabulary,
    *,
    mesh: Mesh,
    seed: int,
    start_from: pathlib.Path | None = None,
    initial: pathlib.Path | None = None,
    config_text: str = "",
    prompts: Mapping[str, str] | None = None,
    evaluators: Sequence[Callable[[Qwen3Config, jax.sharding.Mesh], Evaluator]] = (),
    hooks: Sequence[Hook] = (),
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Trains one stage to its last step, resuming from its latest checkpoint. Every process of a job calls it.

    The parameters come from the first of these that applies:

    1. resume: the latest checkpoint in this folder that is not damaged;
    2. an earlier stage: `start_from`;
    3. imported weights: `initial`;
    4. scratch: random weights of the seed.

    Args:
      folder: of all files of the stage; created if missing.
      training: the stage.
      config: the encoder.
      table: the stage's token table, or tables by source as `open_tables` returns them.
      vocabulary: with the mask token that the stage uses.
      mesh: devices.
      seed: of parameters, data order and corruption.
      start_from: folder of an earlier stage.
      initial: a model folder, or a Hugging Face folder that can be imported.
      config_text: the resolved configuration, written as `config.gin` and into every checkpoint.
      prompts: of the model, written to its folder; the tables hold them already.
      evaluators: (encoder of the stage, mesh) -> what `training.evaluation` computes beside held-out loss.
      hooks: called around each step, before the built-in ones write the log.
      clock: returns seconds, for when checkpoints are due.

    Returns:
      The content of `finished.json`: `stage`, `starts_from`, `summary`, `reads`, `steps` (those that were done),
      `seconds`, `compile_seconds` and the last `metrics`; `best` (`metric`, `value`, `step`) if a best metric is named;
      `ended_early`, the reason, if it ended before its last step.

    Raises:
      OutOfMemory: a device has too little memory for the state or a step.
      NonFiniteLoss: a metric is not finite, in more steps than `Training.skip_nonfinite`.
      Preempted: SIGTERM came; the state is saved, or the stage is finished.
      BadInput: a mesh larger than the devices or one that cannot share the batch; a batch larger than the table;
        a damaged checkpoint, or one with other settings; a finished stage with other settings; an earlier stage of
        another model; an evaluation without data, or without the best metric.
    """
    # The order matters. What can fail on bad input comes before anything is written. The checkpoint is restored
    # before batches are read, because it holds the position in the data. `finished.json` comes last, after the last
    # checkpoint. Every process runs all of it, but only the first process writes single files.
    started = time.monotonic()
    stage, model, config = training.stage, config, training.model(config)
    data = {"seed": seed, "data": repr(training.data or Mixture()), "tables": digest_of(table)}
    computes = settings_of(training, config, **data, **{"Evaluation.held_out": training.held_out})
    if (folder / FINISHED).exists():
        summary = read_json(folder / FINISHED)
        require_same(folder, "the finished stage", summary.pop(COMPUTES, {}), computes)
        return summary
    devices = mesh.build()
    batch = stage.batch
    check_stage(training, config, devices, mesh)
    optimizer = training.optimizer.build(training.steps)
    learning_rate = training.optimizer.learning_rate(training.steps)

    with contextlib.ExitStack() as opened:  # a step that fails leaves no thread and no half-written checkpoint
        opened.enter_context(mesh.activate(devices))
        memory = DeviceMemory(state_layout(config, stage, optimizer, devices, training.ema))
        opened.enter_context(explained(training, devices, memory))
        # 1. The state, and the position in the data that belongs to it.
        placement, groups = batch_sharding(devices), training.packing_groups
        batches = opened.enter_context(
            HostBatches(batch, table, training.data, seed, placement, groups=groups, held_out=training.held_out)
        )
        evaluating: list[Evaluator] = [make(config, devices) for make in evaluators] if training.evaluation else []
        if training.held_out:
            examples, count = batches.examples, training.held_out
            evaluating.append(HeldOutLoss(stage, config, vocabulary.mask_id, examples, count, devices))
        kept = training.checkpointing
        evaluations = Evaluations(training, evaluating)
        keep = Keep(
            latest=kept.keep,
            every_steps=kept.keep_every_steps,
            every_seconds=kept.keep_every_seconds,
            best=kept.keep_best if kept.best_metric else 0,
            best_value=evaluations.goodness,
        )
        order = {**data, "examples": batches.examples.count, "batch_size": batch.batch_size}
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder, keep)))
        restored = checkpoints.restore_latest(memory.state.arrays())
        if restored is None:
            state, source = _first_state(training, optimizer, model, config, devices, seed, start_from, initial)
            restored = Restored(0, state.arrays(), {"position": 0, "seconds": 0.0, "useful_seconds": 0.0})
            info = model_info(state.params, state.optimizer, state.ema)
            if is_first():
                write_text(folder / "model-info.txt", info)
        else:
            what = f"the checkpoint of step {restored.step}"
            require_same(folder, what, restored.about, order)
            require_same(folder, what, restored.about.get(COMPUTES, {}), computes)
            source = f"its own checkpoint of step {restored.step}"
            batches.seek(restored.about["position"])
        counts = {"skipped": restored.about.get("skipped", 0), "tolerated": training.skip_nonfinite}
        counts = jax.device_put({name: np.int32(count) for name, count in counts.items()}, replicated(devices))
        state = TrainState(**restored.state, **counts)
        evaluations.resume(restored.about.get("best"))
        logging.info("%s: starting from %s", stage.name, source)
        seconds_before = restored.about["seconds"]

        # 2. The files that describe the stage.
        logs = opened.enter_context(LogFolder(folder, _CONTINUED, write=is_first()))
        goodput = Goodput(logs.local, useful=restored.about["useful_seconds"], write=is_first())
        goodput.save()  # counts the start even if it is killed early
        if is_first():
            describe_model(folder, config, vocabulary, stage=stage.name, kind=stage.model_kind, prompts=prompts or {})
            write_text(folder / "config.gin", config_text)
        logged = LoggedStage(logs.local, stage.name, restored.step, config_text)
        writers = [each.open(logged) for each in training.logging.writers] if is_first() else []
        writer = opened.enter_context(
            contextlib.closing(MetricsWriter(logs.local, restored.step, write=is_first(), writers=writers))
        )

        # 3. The steps.
        meter = Meter(config, devices.size)
        times = StepClock(goodput, meter)
        shape = {"steps": training.steps, "seed": seed, "mask_id": vocabulary.mask_id}
        step_of = make_step(stage, config, optimizer, mesh=devices, ema=training.ema, **shape)
        compiled = CompiledStep(step_of, times, memory)

        def save(step: int, state: TrainState, position: int) -> None:
            about = {
                "stage": stage.name,
                "position": position,
                "skipped": int(jax.device_get(state.skipped)),
                **order,
                COMPUTES: computes,
                "seconds": seconds_before + time.monotonic() - started,
                "useful_seconds": goodput.useful,
                "processes": jax.process_count(),
                "mesh": dict(devices.shape),
                "config": config_text,
            }
            if evaluations.best:
                about["best"] = dataclasses.asdict(evaluations.best)
            logs.upload()
            checkpoints.save(step, state.arrays(), about, evaluations.of_step(step))

        profiled = training.logging.profile_steps if is_first() else ()
        progress = opened.enter_context(
            Progress(stage.name, total=training.steps, start=restored.step, unit="step", enabled=is_first())
        )
        profile = opened.enter_context(StepProfile(logs.local / "profile", profiled))
        log = _Log(learning_rate, meter, goodput, writer, progress, checkpoints)
        trainer = Trainer(
            training,
            compiled,
            state,
            restored.step,
            batches,
            mesh=devices,
            save=save,
            loss_of=stage_loss(stage, config, **shape),
            evaluations=evaluations,
            hooks=[*hooks, log, profile],
            clock=times,
            now=clock,
        )
        del state, restored
        stops = trainer.run()

    # 4. Finished.
    summary: dict[str, Any] = {
        "stage": stage.name,
        "starts_from": start_from.name if start_from else None,
        "summary": stage.summary,
        "reads": batch.kind,
        "steps": trainer.steps_done,
        "seconds": seconds_before + time.monotonic() - started,
        "compile_seconds": compiled.compile_seconds,
        "metrics": writer.last,
        **evaluations.summary(trainer.steps_done),
    }
    if is_first():
        goodput.save()
        if kept.use_best and "best" in summary:
            select_checkpoint(folder, summary["best"]["step"])
        logs.upload()
        write_json(folder / FINISHED, {**summary, COMPUTES: computes})
    if stops:
        raise Preempted(f"{stage.name}: asked to stop at its end; the same command resumes after it", together=True)
    return summary


def _first_state(
    training: Training,
    optimizer: optax.GradientTransformation,
    model: Qwen3Config,
    config: Qwen3Config,
    devices: jax.sharding.Mesh,
    seed: int,
    start_from: pathlib.Path | None,
    initial: pathlib.Path | None,
) -> tuple[TrainState, str]:
    """Returns the state before the first step, and text that says where its parameters come from."""
    wanted = model_params(state_layout(config, training.stage, optimizer, devices).params)
    params, source = starting_params(
        model,
        config,
        wanted,
        devices,
        seed=seed,
        start_from=start_from,
        initial=initial,
        initial_share=training.initial_share,
    )
    return new_state(trained_params(params, training.stage), optimizer, devices, training.ema), source


class _Log:
    """The built-in hook that completes the numbers of a logged step and writes them."""

    def __init__(self, learning_rate, meter: Meter, goodput: Goodput, writer: MetricsWriter, progress, checkpoints):
        self._learning_rate, self._meter, self._goodput = learning_rate, meter, goodput
        self._writer, self._progress, self._checkpoints = writer, progress, checkpoints

    def before_step(self, step: int) -> None:
        pass

    def on_log(self, step: int, numbers: dict[str, float]) -> None:
        updates = max(step - 1 - int(numbers["skipped"]), 0)  # before the step: the schedule counts updates
        numbers["learning_rate"] = float(np.asarray(self._learning_rate(updates)))
        numbers |= self._meter.numbers(numbers) | memory_numbers() | self._goodput.numbers()
        self._writer.write(step, numbers)
        self._goodput.save()
        self._progress.update(step, loss=numbers.get("loss", math.nan), tokens=self._meter.tokens)
        self._checkpoints.check()

    def after_step(self, step: int, state: TrainState) -> None:
        pass
