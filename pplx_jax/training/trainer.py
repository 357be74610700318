"""The one training loop. Every stage runs through `train`; none has a loop of its own."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pplx_jax.checkpoints.model_folder import describe_model
from pplx_jax.checkpoints.orbax import Checkpoints, Keep, Restored
from pplx_jax.core.errors import BadInput, Preempted
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.progress import Progress
from pplx_jax.data.batches.examples import Examples, Tables
from pplx_jax.data.batches.host_batches import BatchReader, own_share, placer
from pplx_jax.data.batches.prefetch import Loader
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.parallel.model_info import model_info
from pplx_jax.parallel.processes import Agreement, PreemptionNotice, is_first, over_processes
from pplx_jax.parallel.rules import shards
from pplx_jax.training.goodput import Goodput
from pplx_jax.training.meter import Meter
from pplx_jax.training.metrics import MetricsWriter, memory_numbers
from pplx_jax.training.nonfinite import first_nonfinite
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.profiling import StepProfile
from pplx_jax.training.resume_check import computed, require_same
from pplx_jax.training.stages.base import Stage
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

FINISHED = "finished.json"
COMPUTES = "computes"  # in it, and in what a checkpoint says of itself


class NonFiniteLoss(RuntimeError):
    """A metric stopped being a number: the message names the stage, the step, the metric and the first array."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One stage of a recipe.

    Attributes:
      stage: what is learnt.
      optimizer: and how.
      steps: optimizer steps.
      data: which sources are read when; all, in proportion to their examples, where None.
      packing_groups: parts of a batch that are packed apart. Processes share them, so with G of them any number of
        processes that divides G trains on the same rows.
      log_every_steps: how often numbers are fetched from the devices and written.
      checkpoint_every_seconds: wall time between checkpoints; there is always one at the end.
      checkpoint_every_steps: and at the multiples of so many steps; 0 for none.
      keep_checkpoints: the latest so many are kept. With one, a damaged checkpoint has none before it.
      keep_every_steps: those of steps that are multiples of this are kept too; 0 for none.
      keep_every_seconds: and one for so much wall time; 0 for none.
      keep_best: and so many of the best by `best_metric`; 0 for none.
      best_metric: a number that the stage logs; of a step that is saved and not logged, as it was last.
      best_is_highest: whether high is good.
      profile_steps: (first, last) steps to record with JAX's profiler, into the stage's folder; () for none.
      remat_policy: activations saved for the backward pass, see `Qwen3Config.remat_policy`. What fits depends on the
        batch of the stage, so a stage can differ from the model. The model's if None.
    """

    stage: Stage
    optimizer: Optimizer
    steps: int
    data: Mixture | Curriculum | None = None
    packing_groups: int = 1
    log_every_steps: int = 20
    checkpoint_every_seconds: float = 600.0
    checkpoint_every_steps: int = 0
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    keep_every_seconds: float = 0.0
    keep_best: int = 0
    best_metric: str = "loss"
    best_is_highest: bool = False
    profile_steps: tuple[int, ...] = ()
    remat_policy: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("steps", "packing_groups", "log_every_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise BadInput(f"Training.{name}={getattr(self, name)}; set it to 1 or more")
        for name in ("checkpoint_every_seconds", "checkpoint_every_steps", "keep_every_steps", "keep_every_seconds"):
            if getattr(self, name) < 0:
                raise BadInput(f"Training.{name}={getattr(self, name)}; set it to 0 or more")
        profiled = self.profile_steps
        if profiled and (len(profiled) != 2 or not 1 <= profiled[0] <= profiled[1]):
            raise BadInput(f"Training.profile_steps={self.profile_steps}; set it to (first, last), or () for none")

    @property
    def keep(self) -> Keep:
        """Which of its checkpoints stay."""
        return Keep(
            latest=self.keep_checkpoints,
            every_steps=self.keep_every_steps,
            every_seconds=self.keep_every_seconds,
            best=self.keep_best,
            metric=self.best_metric,
            highest=self.best_is_highest,
        )

    def model(self, config: Qwen3Config) -> Qwen3Config:
        """The encoder as this stage trains it: without a head where the stage predicts nothing."""
        tied = config.tied or not self.stage.predicts_tokens
        remat_policy = config.remat_policy if self.remat_policy is None else self.remat_policy
        return dataclasses.replace(config, tied=tied, remat_policy=remat_policy)


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
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Trains one stage to its last step, from wherever it stands. Every process of a job calls it.

    Where parameters come from, first that applies:

    1. resume: this folder's latest checkpoint that is whole;
    2. an earlier stage: `start_from`;
    3. imported weights: `initial`;
    4. scratch: random numbers of the seed.

    Args:
      folder: where everything of the stage goes; made where missing.
      training: the stage.
      config: the encoder.
      table: the stage's token files, one table or those of `open_tables`.
      vocabulary: whose mask token the stage uses.
      mesh: devices.
      seed: of parameters, data order and corruption.
      start_from: folder of an earlier stage.
      initial: a model folder, or a Hugging Face folder that could be imported.
      config_text: the resolved configuration, kept as `config.gin` and in every checkpoint.
      clock: seconds, by which checkpoints are due.

    Returns:
      What `finished.json` says of it: `stage`, `steps`, `seconds`, `compile_seconds` and the last `metrics`.

    Raises:
      NonFiniteLoss: a logged metric is not finite.
      Preempted: SIGTERM came; the state is saved, or the stage finished.
      BadInput: a mesh larger than the devices or one that cannot share the batch; a batch larger than the table;
        a damaged checkpoint, or one of another model, seed, table, mixture or batch size, or computed by other
        settings, as may be the finished stage; an earlier stage of another model.
    """
    # The order below matters: what can fail on bad input comes before anything is written that another run left;
    # the checkpoint is restored before the loader starts, for it says where in the data to go on; the marker of a
    # finished stage comes last, once the checkpoint is whole. All but the writing of single files is done by every
    # process alike: a step, a save or a sum that one of them left out would hang the others.
    started = time.monotonic()
    stage, model, config = training.stage, config, training.model(config)
    computes = computed(training, config, seed)
    if (folder / FINISHED).exists():
        summary = read_json(folder / FINISHED)
        require_same(folder, "the finished stage", summary.pop(COMPUTES, {}), computes)
        return summary
    device_mesh = mesh.build()
    sizes = {"kv_heads": config.kv_heads, "mlp_width": config.mlp_width}
    mesh.require(device_mesh, batch_size=stage.batch_size, row_length=stage.row_length, **sizes)
    optimizer = training.optimizer.build(training.steps)
    learning_rate = training.optimizer.learning_rate(training.steps)
    tables = {"": [table]} if isinstance(table, TokenTable) else table
    examples = Examples(tables, training.data, stage.batch_size, seed)
    order = {
        "seed": seed,
        "examples": examples.count,
        "batch_size": stage.batch_size,
        "data": repr(training.data or Mixture()),
    }
    shape = {"steps": training.steps, "seed": seed, "mask_id": vocabulary.mask_id}
    compile_seconds = 0.0

    with contextlib.ExitStack() as opened:  # a step that fails leaves no thread and no half-written checkpoint
        opened.enter_context(mesh.activate(device_mesh))  # kernels run on each device's share
        row_shards = shards("rows", device_mesh)
        placement = batch_sharding(device_mesh)
        share = own_share(placement, (row_shards, stage.row_length))
        read = BatchReader(stage, examples, share, training.packing_groups, row_shards=row_shards)
        place = placer(placement, share)
        # 1. Parameters and position.
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder, training.keep)))
        layout = state_layout(config, stage, optimizer, device_mesh)
        restored = checkpoints.restore_latest(vars(layout))
        if restored is None:
            wanted = model_params(layout.params)
            sources = {"seed": seed, "start_from": start_from, "initial": initial}
            params, source = starting_params(model, config, wanted, device_mesh, **sources)
            state = new_state(trained_params(params, stage), optimizer, device_mesh)
            del params
            first_step = 0
            about: dict[str, Any] = {"position": 0, "seconds": 0.0, "useful_seconds": 0.0}
        else:
            first_step, about = restored.step, restored.about
            _require_same_data(folder, restored, order)
            require_same(folder, f"the checkpoint of step {first_step}", about.get(COMPUTES, {}), computes)
            state, source = TrainState(**restored.state), f"its own checkpoint of step {first_step}"
        logging.info("%s: starting from %s", stage.name, source)

        def seconds() -> float:
            return about["seconds"] + time.monotonic() - started

        # 2. Data, from the position the state stands at.
        def load(position: int) -> Loader:
            shares = {"host_index": share.index, "host_count": share.count}
            reading = {"order": examples.select, "start_position": position, **shares}
            return Loader(read, count=examples.count, batch_size=stage.batch_size, seed=seed, **reading)

        loader = opened.enter_context(load(about["position"]))

        # 3. What the folder says of itself.
        goodput = Goodput(folder, useful=about["useful_seconds"], write=is_first())
        goodput.save()  # a start counts, however soon it is killed
        if is_first():
            describe_model(folder, config, vocabulary, stage=stage.name)
            (folder / "config.gin").write_text(config_text, encoding="utf-8")
        if restored is None:
            info = model_info(state.params, state.optimizer)
            if is_first():
                (folder / "model-info.txt").write_text(info, encoding="utf-8")
        writer = opened.enter_context(
            contextlib.closing(MetricsWriter(folder, resume_step=first_step, write=is_first()))
        )

        # 4. The steps.
        step_function = make_step(stage, config, optimizer, mesh=device_mesh, **shape)
        compiled: dict[tuple[int, ...], jax.stages.Compiled] = {}  # batches of another mixture fill other rows
        agreed = Agreement(device_mesh, wishes=2)
        notice = opened.enter_context(PreemptionNotice())
        profile = opened.enter_context(StepProfile(folder / "profile", training.profile_steps if is_first() else ()))
        progress = opened.enter_context(
            Progress(stage.name, total=training.steps, start=first_step, unit="step", enabled=is_first())
        )
        meter = Meter(config, share.count, device_mesh.size)
        unseen: list[tuple[int, dict[str, jax.Array]]] = []  # metrics that are still on the devices
        numbers: dict[str, float] = {}
        wished = False
        last_saved = clock()
        now = time.monotonic()
        for step in range(first_step + 1, training.steps + 1):
            began, waited, compiling, saving = now, loader.data_wait_seconds, 0.0, 0.0
            profile.before(step)
            (batch, counts), position = next(loader)
            waited = loader.data_wait_seconds - waited
            batch = place(batch)
            cells = batch["tokens"].shape
            if cells not in compiled:
                compiling = time.monotonic()
                compiled[cells] = step_function.lower(state, batch).compile()
                compiling = time.monotonic() - compiling
                compile_seconds += compiling
                meter.compiled(compiling)
            state, metrics = compiled[cells](state, batch)
            unseen.append((step, metrics))
            meter.read(counts, waited)

            due = is_first() and not wished and clock() - last_saved > training.checkpoint_every_seconds
            wished = wished or due
            is_due, stops = agreed(state.step, due, notice.given)
            logs = step % training.log_every_steps == 0 or step in (1, training.steps)
            at_step = training.checkpoint_every_steps and step % training.checkpoint_every_steps == 0
            saves = is_due or stops or at_step or step == training.steps
            if logs or saves:  # parameters that are no numbers are never saved
                for at, values in zip([at for at, _ in unseen], jax.device_get([m for _, m in unseen]), strict=True):
                    numbers = {name: float(value) for name, value in values.items()}
                    try:
                        _require_finite(stage.name, at, numbers)
                    except NonFiniteLoss as error:
                        with load(position - (step - at + 1) * stage.batch_size) as again:
                            culprit = place(next(again)[0].arrays)
                        loss_of = stage_loss(stage, config, **shape)
                        array = first_nonfinite(loss_of, state.params, culprit, jnp.int32(at - 1))
                        raise NonFiniteLoss(f"{error}; first array that is not finite: {array}") from None
                unseen.clear()
            if logs:
                numbers |= {"learning_rate": float(np.asarray(learning_rate(step - 1)))}
                numbers |= meter.numbers(numbers) | memory_numbers() | goodput.numbers()
                checkpoints.require_metric(numbers)
                writer.write(step, numbers)
                goodput.save()
                progress.update(step, loss=numbers["loss"], tokens=meter.tokens)
                checkpoints.check()
            profile.after(step, state)
            if saves:
                saving = time.monotonic()
                about_now = {
                    "stage": stage.name,
                    "position": position,
                    **order,
                    COMPUTES: computes,
                    "seconds": seconds(),
                    "useful_seconds": goodput.useful,
                    "processes": jax.process_count(),
                    "mesh": dict(device_mesh.shape),
                    "config": config_text,
                }
                checkpoints.save(step, vars(state), about_now, writer.last | numbers)
                saving = time.monotonic() - saving
                last_saved, wished = clock(), False
            now = time.monotonic()
            meter.saved(saving)
            goodput.spent("useful", now - began - waited - compiling - saving)
            goodput.spent("data_wait", waited)
            goodput.spent("compile", compiling)
            goodput.spent("checkpoint", saving)
            if stops and step < training.steps:
                raise Preempted(
                    f"{stage.name}: asked to stop at step {step}, which is saved; the same command goes on from there",
                    together=True,
                )
        # Of what was asked in the last steps not every process knows yet.
        stops = bool(over_processes({"stops": notice.given})["stops"].any())

    # 5. Finished.
    summary = {
        "stage": stage.name,
        "steps": training.steps,
        "seconds": seconds(),
        "compile_seconds": compile_seconds,
        "metrics": writer.last,
    }
    if is_first():
        goodput.save()
        write_json(folder / FINISHED, {**summary, COMPUTES: computes})
    if stops:
        raise Preempted(f"{stage.name}: asked to stop at its end; the same command goes on after it", together=True)
    return summary


def _require_finite(stage: str, step: int, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NonFiniteLoss(f"{stage} step {step}: {name} is {value}; the last checkpoint is from before it")


def _require_same_data(folder: pathlib.Path, restored: Restored, order: Mapping[str, Any]) -> None:
    """A position means something in one order of the same examples alone."""
    for name, wanted in order.items():
        found = restored.about.get(name)
        if found != wanted:
            raise BadInput(
                f"{folder}: the checkpoint of step {restored.step} is of {name} {found}, this recipe has {wanted}; "
                "going on would skip or repeat examples, so give back what it was or choose a new --workdir"
            )
