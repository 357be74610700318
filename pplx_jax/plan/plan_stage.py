"""`pplx-jax plan`: what a stage of a recipe needs and does on TPUs, found without TPUs."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from pplx_jax.checkpoints.initial_model import model_to_train
from pplx_jax.core.errors import BadInput, Unmet
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.plan.advice import advice, rehearsal_advice
from pplx_jax.plan.chips import Topology
from pplx_jax.plan.on_topology import Task
from pplx_jax.plan.picture import write_picture
from pplx_jax.plan.rehearsal_table import rehearsal_table
from pplx_jax.plan.table import as_table
from pplx_jax.plan.worker import call
from pplx_jax.recipes.recipe import Lengths
from pplx_jax.training.settings import Training, chosen_stages

ESTIMATED = (
    "Estimated: cycles of the compiler and of the kernels' schedules, without stalls; links at their nominal rates, "
    "asynchronous transfers hidden; every text as long as the recipe allows. The FLOPs of MFU are those of the model, "
    "without recomputation. Attention is bidirectional, so they have all pairs of tokens of a text, not half of them."
)


def plan_stage(
    *,
    topology: str,
    stages: Sequence[Training],
    lengths: Lengths,
    stage: str | None = None,
    model: Qwen3Config | None = None,
    initial: str | None = None,
    mesh: Mesh = Mesh(),  # noqa: B008 frozen
    num_slices: int = 1,
    rehearse: bool = False,
    host: int | None = None,
    picture: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compiles a stage's step for a topology, ahead of time and without arrays, and returns a report.

    With `rehearse` it compiles nothing: it walks every host's start on the devices of the topology, for one stage or
    for all of them.

    Args:
      topology: a slice, such as "v5e:16x16".
      stages: the recipe's stages.
      lengths: the recipe's token limits; every text is assumed to have the maximum length.
      stage: the name of a stage in the recipe; a rehearsal without it is of all stages.
      model: the recipe's encoder.
      initial: the folder of the initial model, used if `model` is None.
      mesh: devices.
      num_slices: number of slices, connected by the data-centre network.
      rehearse: rehearse the start instead of compiling the step.
      host: the only host that the table of a rehearsal lists.
      picture: an HTML page to write, with memory and time by kind.

    Returns:
      `fits`, `hbm_bytes_per_chip`, `hbm_limit_bytes`, `flops_per_step` (by arithmetic, all chips, without
      recomputation), `collective_bytes` (received by a chip per step), `step_seconds_estimate`, `mfu_estimate`; also
      `hbm` by kind, `seconds` by kind, `collectives` by kind and link, `tokens_per_second`, `chip_hours`, `days`,
      `advice`, `without_estimate`, `table`. A rehearsal: `fits`, `advice`, `table`, and `stages`, each with
      `mesh_sizes`, `rows` (sequences of a batch), `row_shards`, `packing_groups`, `best_packing_groups`,
      `hbm` by kind and `hbm_bytes_per_chip` (at least), `host_bytes` (at least), `checkpoint_bytes`,
      `copied_parameters`, and `hosts`, each with `devices`, `mesh_places`, `rows`, `groups`, `bytes_written`,
      `memory_bytes`.

    Raises:
      Unmet: a stage does not fit; the error contains the same report.
      BadInput: there is no such stage, topology or host, the mesh does not fit them, or libtpu is not installed; in a
        rehearsal, whatever a host would refuse.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput("plan needs libtpu, which is not installed; pip install 'pplx-jax[tpu]'")
    where, chosen = Topology(topology, num_slices), chosen_stages(stages, stage)
    if stage is None and not rehearse:
        known = ", ".join(each.stage.name for each in stages)
        raise BadInput(f"plan compiles one stage; give --stage, one of {known}, or --rehearse")
    for name, value in {"--host": host, "--picture": picture}.items():
        if value is not None and rehearse == (name == "--picture"):
            raise BadInput(f"{name} belongs to a plan {'without' if rehearse else 'with'} --rehearse; leave it out")
    config = model_to_train(model, None if model else initial, "tpu")
    tasks = [Task(training, config, mesh, lengths, where) for training in chosen]
    if rehearse:
        return _rehearsed(tasks, host)
    logging.info("plan: compiling %s for %s on mesh %s; this takes minutes for a large model", stage, where, mesh)
    report = _report(call("pplx_jax.plan.compile_step:compile_step", tasks[0]), chosen[0], where)
    if picture:
        write_picture(picture, report)
    if not report["fits"]:
        raise Unmet(report)
    return report


def _rehearsed(tasks: Sequence[Task], host: int | None) -> dict[str, Any]:
    reports = call("pplx_jax.plan.rehearsal:rehearse", tasks)
    count = len(reports[0]["hosts"])
    if host is not None and not 0 <= host < count:
        raise BadInput(f"--host={host}: the hosts are 0 to {count - 1}")
    for report, task in zip(reports, tasks, strict=True):
        report["advice"] = rehearsal_advice(report, task.training)
    misfits = [f"{each['stage']}: {each['advice'][0]}" for each in reports if not each["fits"]]
    table = rehearsal_table(reports, host)
    found = {"fits": not misfits, "advice": misfits, "stages": reports, "table": table}
    if misfits:
        raise Unmet(found)
    return found


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
