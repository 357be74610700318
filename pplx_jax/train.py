"""The one training loop. Every stage runs through `train`; none has a loop of its own."""

import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpointing import Checkpoints, load_params, read_json, write_json
from pplx_jax.data.loader import Loader
from pplx_jax.data.token_files import TokenTable
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.initial_model import load_weights
from pplx_jax.metrics import MetricsWriter
from pplx_jax.model_folder import describe_model
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.optimizers import Optimizer
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.parallel.model_info import model_info
from pplx_jax.parallel.rules import shards
from pplx_jax.progress import Progress
from pplx_jax.stages.base import Stage
from pplx_jax.train_state import (
    TrainState,
    initial_params,
    make_step,
    model_params,
    new_state,
    state_layout,
    trained_params,
)

FINISHED = "finished.json"


class NonFiniteLoss(RuntimeError):
    """A metric stopped being a number: the message names the stage, the step and the metric."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One stage of a recipe.

    Attributes:
      stage: what is learnt.
      optimizer: and how.
      steps: optimizer steps.
      log_every_steps: how often numbers are fetched from the devices and written.
      checkpoint_every_seconds: wall time between checkpoints; there is always one at the end.
      keep_checkpoints: the latest so many are kept.
      kept: of what a block makes, what the backward pass does not make again, see `Qwen3Config.kept`: what fits is a
        matter of the stage's batch. As the model says where None.
    """

    stage: Stage
    optimizer: Optimizer
    steps: int
    log_every_steps: int = 20
    checkpoint_every_seconds: float = 600.0
    keep_checkpoints: int = 1
    kept: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("steps", "log_every_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise BadInput(f"Training.{name}={getattr(self, name)}; set it to 1 or more")

    def model(self, config: Qwen3Config) -> Qwen3Config:
        """The encoder as this stage trains it: without a head where the stage predicts nothing."""
        tied, kept = config.tied or not self.stage.predicts_tokens, config.kept if self.kept is None else self.kept
        return dataclasses.replace(config, tied=tied, kept=kept)


def train(
    folder: pathlib.Path,
    training: Training,
    config: Qwen3Config,
    table: TokenTable,
    vocabulary: Vocabulary,
    *,
    mesh: Mesh,
    seed: int,
    start_from: pathlib.Path | None = None,
    initial: pathlib.Path | None = None,
    config_text: str = "",
) -> dict[str, Any]:
    """Trains one stage to its last step, from wherever it stands.

    Where parameters come from, first that applies:

    1. resume: this folder's latest checkpoint;
    2. an earlier stage: `start_from`;
    3. imported weights: `initial`;
    4. scratch: random numbers of the seed.

    Args:
      folder: where everything of the stage goes; made where missing.
      training: the stage.
      config: the encoder.
      table: the stage's token files.
      vocabulary: whose mask token the stage uses.
      mesh: devices.
      seed: of parameters, data order and corruption.
      start_from: folder of an earlier stage.
      initial: a model folder, or a Hugging Face folder that could be imported.
      config_text: the resolved configuration, kept as `config.gin`.

    Returns:
      What `finished.json` holds: `stage`, `steps`, `seconds`, `compile_seconds` and the last `metrics`.

    Raises:
      NonFiniteLoss: a logged metric is not finite.
      BadInput: a mesh larger than the devices or one that cannot share the batch; a batch larger than the table;
        a damaged checkpoint; an earlier stage of another model.
    """
    # The order below matters: what can fail on bad input comes before anything is written that another run left;
    # the checkpoint is restored before the loader starts, for it says where in the data to go on; the marker of a
    # finished stage comes last, once the checkpoint is whole.
    started = time.monotonic()
    if (folder / FINISHED).exists():
        return read_json(folder / FINISHED)
    stage = training.stage
    device_mesh = mesh.build()
    mesh.require(config, device_mesh, batch_size=stage.batch_size, row_length=stage.row_length)
    optimizer = training.optimizer.build(training.steps)
    model, config = config, training.model(config)
    learning_rate = training.optimizer.learning_rate(training.steps)
    compile_seconds = 0.0

    with contextlib.ExitStack() as opened:  # a step that fails leaves no thread and no half-written checkpoint
        opened.enter_context(mesh.activate(device_mesh))  # kernels run on each device's share
        rows = stage.rows(table, multiple_of=shards("rows", device_mesh))
        # 1. Parameters and position.
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder, keep=training.keep_checkpoints)))
        layout = state_layout(config, stage, optimizer, device_mesh)
        restored = checkpoints.restore_latest({**vars(layout), "seconds": 0.0})
        if restored is None:
            if start_from:
                source, params = f"the stage in {start_from}", _without_head(load_params(start_from), config)
                _require_shapes(params, model_params(layout.params), start_from)
            elif initial:
                source, params = f"the weights in {initial}", load_weights(initial, model, device_mesh)
                params = _without_head(params, config)
            else:
                source, params = "random numbers", initial_params(config, seed, device_mesh)
            state, first_step, earlier_seconds = (
                new_state(trained_params(params, stage), optimizer, device_mesh),
                0,
                0.0,
            )
        else:
            first_step, saved = restored
            earlier_seconds = float(saved.pop("seconds"))
            state, source = TrainState(**saved), f"its own checkpoint of step {first_step}"
        logging.info("%s: starting from %s", stage.name, source)

        def seconds() -> float:
            return earlier_seconds + time.monotonic() - started

        # 2. Data, from the step the state stands at.
        loader = opened.enter_context(
            Loader(
                lambda indices: stage.features(table, indices, rows),
                count=table.count,
                batch_size=stage.batch_size,
                seed=seed,
                start_position=first_step * stage.batch_size,
            )
        )

        # 3. What the folder says of itself.
        describe_model(folder, config, vocabulary, stage=stage.name)
        (folder / "config.gin").write_text(config_text, encoding="utf-8")
        if restored is None:
            (folder / "model-info.txt").write_text(model_info(state.params, state.optimizer), encoding="utf-8")
        writer = opened.enter_context(contextlib.closing(MetricsWriter(folder, resume_step=first_step)))

        # 4. The steps.
        step_function = make_step(
            stage,
            config,
            optimizer,
            steps=training.steps,
            seed=seed,
            mask_id=vocabulary.mask_id,
            mesh=device_mesh,
        )
        placement = batch_sharding(device_mesh)
        compiled: jax.stages.Compiled | None = None
        progress = opened.enter_context(Progress(stage.name, total=training.steps, start=first_step, unit="step"))
        tokens = logged_tokens = 0
        numbers: dict[str, float] = {}
        logged_at = last_saved = time.monotonic()
        for step in range(first_step + 1, training.steps + 1):
            (batch, counts), _ = next(loader)
            tokens += counts["tokens"]
            batch = jax.device_put(batch, placement)
            if compiled is None:
                compiling = time.monotonic()
                compiled = step_function.lower(state, batch).compile()
                logged_at = time.monotonic()
                compile_seconds = logged_at - compiling
            state, metrics = compiled(state, batch)
            logs = step % training.log_every_steps == 0 or step in (1, training.steps)
            saves = step == training.steps or time.monotonic() - last_saved > training.checkpoint_every_seconds
            if logs or saves:  # parameters that are no numbers are never saved
                numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _require_finite(stage.name, step, numbers)
            if logs:
                now = time.monotonic()
                numbers |= {
                    "learning_rate": float(np.asarray(learning_rate(step - 1))),
                    "tokens_per_second": (tokens - logged_tokens) / max(now - logged_at, 1e-9),
                    "fill": counts["fill"],
                    "cut_tokens": counts["cut_tokens"],
                    "data_wait_seconds": loader.data_wait_seconds,
                }
                logged_at, logged_tokens = now, tokens
                writer.write(step, numbers)
                progress.update(step, loss=numbers["loss"], tokens=tokens)
            if saves:
                checkpoints.save(step, {**vars(state), "seconds": seconds()})
                last_saved = time.monotonic()

    # 5. Finished.
    summary = {
        "stage": stage.name,
        "steps": training.steps,
        "seconds": seconds(),
        "compile_seconds": compile_seconds,
        "metrics": writer.last,
    }
    write_json(folder / FINISHED, summary)
    return summary


def _without_head(params: dict[str, Any], config: Qwen3Config) -> dict[str, Any]:
    """The parameters of `config`, where an earlier stage may have had a head of its own beside them."""
    return {name: leaf for name, leaf in params.items() if name != "head" or not config.tied}


def _require_shapes(params: Any, wanted: Any, start_from: pathlib.Path) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}

    found, wanted = shapes(params), shapes(wanted)
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise BadInput(
            f"{start_from} holds another model: {name} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} in this one; start from a stage of the same model"
        )


def _require_finite(stage: str, step: int, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NonFiniteLoss(f"{stage} step {step}: {name} is {value}; the last checkpoint is from before it")
