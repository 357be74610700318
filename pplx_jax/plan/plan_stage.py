"""`pplx-jax plan`: memory and time that a stage of a recipe needs on TPUs, computed without TPUs."""

import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import logging

from pplx_jax.checkpoints.initial_model import model_to_train
from pplx_jax.core.errors import BadInput, Unmet
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.plan.advice import advice
from pplx_jax.plan.chips import Topology
from pplx_jax.plan.libtpu import ENVIRONMENT
from pplx_jax.plan.picture import write_picture
from pplx_jax.plan.table import as_table
from pplx_jax.plan.worker import Task
from pplx_jax.recipes.recipe import Lengths
from pplx_jax.training.settings import Training

_SAYS_EVERY = 30.0  # seconds
ESTIMATED = (
    "Estimated: cycles of the compiler and of the kernels' schedules, without stalls; links at their nominal rates, "
    "asynchronous transfers hidden; every text as long as the recipe allows."
)


def plan_stage(
    *,
    stage: str,
    topology: str,
    stages: Sequence[Training],
    lengths: Lengths,
    model: Qwen3Config | None = None,
    initial: str | None = None,
    mesh: Mesh = Mesh(),  # noqa: B008 frozen
    num_slices: int = 1,
    picture: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compiles a stage's step for a topology, ahead of time and without arrays, and returns a report.

    Args:
      stage: the name of a stage in the recipe.
      topology: a slice, such as "v5e:16x16".
      stages: the recipe's stages.
      lengths: the recipe's token limits; every text is assumed to have the maximum length.
      model: the recipe's encoder.
      initial: the folder of the initial model, used if `model` is None.
      mesh: devices.
      num_slices: number of slices, connected by the data-centre network.
      picture: an HTML page to write, with memory and time by kind.

    Returns:
      `fits`, `hbm_bytes_per_chip`, `hbm_limit_bytes`, `flops_per_step` (by arithmetic, all chips, without
      recomputation), `collective_bytes` (received by a chip per step), `step_seconds_estimate`, `mfu_estimate`; also
      `hbm` by kind, `seconds` by kind, `collectives` by kind and link, `tokens_per_second`, `chip_hours`, `days`,
      `advice`, `without_estimate`, `table`.

    Raises:
      Unmet: the stage does not fit; the error contains the same report.
      BadInput: there is no such stage or topology, the mesh does not fit them, or libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput("plan compiles with libtpu, which is not installed; pip install 'pplx-jax[tpu]'")
    where = Topology(topology, num_slices)
    training = next((each for each in stages if each.stage.name == stage), None)
    if training is None:
        known = ", ".join(each.stage.name for each in stages)
        raise BadInput(f"--stage {stage}: the recipe has no such stage; it has {known}")
    config = model_to_train(model, None if model else initial)
    logging.info("plan: compiling %s for %s on mesh %s; this takes minutes for a large model", stage, where, mesh)
    found = _compile(Task(training, config, mesh, lengths, where))
    report = _report(found, training, where)
    if picture:
        write_picture(picture, report)
    if not report["fits"]:
        raise Unmet(report)
    return report


def _report(found: dict[str, Any], training: Training, where: Topology) -> dict[str, Any]:
    report = {
        "stage": training.stage.name,
        "topology": str(where),
        "hbm_limit_bytes": where.chip.hbm_limit_bytes,
        "mfu_estimate": None,
        **found,
    }
    seconds = found["step_seconds_estimate"]
    if seconds:
        hours = training.steps * seconds / 3600
        report |= {
            "mfu_estimate": found["flops_per_step"] / (seconds * found["chips"] * where.chip.peak_flops),
            "tokens_per_second": found["tokens_per_step"] / seconds,
            "chip_hours": hours * found["chips"],
            "days": hours / 24,
        }
    report["advice"] = advice(report, training)
    return {**report, "estimated": ESTIMATED, "table": as_table(report)}


def _compile(task: Task) -> dict[str, Any]:
    """Runs the worker, and logs every 30 seconds that it is still running."""
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pplx_jax.plan.worker"],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    sent: bytes | None = pickle.dumps(task)
    try:
        while True:
            try:
                out, err = process.communicate(sent, timeout=_SAYS_EVERY)
                break
            except subprocess.TimeoutExpired:
                sent = None  # the task is sent once
                logging.info("plan: still compiling after %.0f s", time.monotonic() - started)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"the compiler failed: {err.decode(errors='replace')[-4000:]}")
    answer = json.loads(out.decode().splitlines()[-1])
    if "bad_input" in answer:
        raise BadInput(answer["bad_input"])
    return answer
