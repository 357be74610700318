"""Trials to jobs: the words after `pplx-jax`, one job a stage, and what each job is told of its trial."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from launch.shared_phases import SharedPhases
from launch.sweep import Trial
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput
from pplx_jax.parallel.mesh import Mesh

LAST_JOB = "finish"  # what a recipe does after its stages: merge, scores, exports, index, report


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of `pplx-jax`.

    Attributes:
      name: of its stage.
      args: the words after the program.
    """

    name: str
    args: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LaunchedTrial:
    """A trial in its place.

    Attributes:
      name: "" outside a sweep, else its number.
      workdir: where it runs, on the machine that runs it.
      jobs: one after another.
      record: what `trial.json` says of it.
      shared: what it takes from a run that is there already.
    """

    name: str
    workdir: str
    jobs: tuple[Job, ...]
    record: Mapping[str, Any]
    shared: SharedPhases | None = None

    def cloud_name(self, job: Job) -> str:
        """Of one of its jobs, for good: another recipe in the same workdir has other names."""
        identity = f"{self.workdir}\n{self.record['fingerprint']}"
        return f"pplx-{hashlib.sha256(identity.encode()).hexdigest()[:10]}-{job.name}"

    def environment(self) -> dict[str, str]:
        """What `launch/entry.py` reads."""
        note: dict[str, Any] = {"workdir": self.workdir, "record": self.record}
        if self.shared:
            note |= {"base": self.shared.base, "links": list(self.shared.links)}
        return {"PPLX_TRIAL": json.dumps(note, sort_keys=True)}


def stage_names(trial: Trial) -> list[str]:
    """The stages of its recipe, in order."""
    arguments = trial.config.arguments.get("run")
    if arguments is None or "stages" not in arguments:
        raise BadInput(f"{', '.join(trial.gin_files)}: no recipe: nothing binds run.stages")
    return [training.stage.name for training in arguments["stages"]]


def require_mesh(trial: Trial, slices: TpuSlices) -> None:
    """Refuses a mesh that is not of all chips asked for.

    Raises:
      BadInput: which axis, and the mend.
    """
    mesh = (trial.config.arguments.get("run") or {}).get("mesh") or Mesh()
    sizes = mesh.sizes(slices.all_chips)
    if sizes["slice"] != slices.num_slices:
        mend = "--gin_file=gin/meshes/multislice.gin and Mesh.slice" if slices.num_slices > 1 else "Mesh.slice=1"
        raise BadInput(f"mesh {mesh} is of {sizes['slice']} slices, --num_slices={slices.num_slices}; give {mend}")
    if (used := math.prod(sizes.values())) != slices.all_chips:
        raise BadInput(
            f"mesh {mesh} is of {used} chips, --tpu={slices.kind} --topology={slices.topology} of {slices.all_chips}; "
            "give --gin_file=gin/meshes/fsdp.gin, or set one size to -1 to take all"
        )


def jobs_of(
    trial: Trial, workdir: str, stage: str | None, done: Sequence[str] = (), words: Sequence[str] = ()
) -> tuple[Job, ...]:
    """One job a stage that is not `done` already, and one for what comes after them; with `stage`, that stage alone.

    Args:
      trial: whose.
      workdir: where it runs.
      stage: the only one, or None.
      done: stages that another run has trained.
      words: flags of every job.

    Raises:
      BadInput: the recipe has no such stage.
    """
    names = stage_names(trial)
    shared = (
        *(f"--gin_file={file}" for file in trial.gin_files),
        *(f"--gin_param={param}" for param in trial.gin_params),
        f"--workdir={workdir}",
        *words,
    )
    if stage is None:
        stages = [Job(name, ("run", *shared, f"--until={name}")) for name in names if name not in done]
        return (*stages, Job(LAST_JOB, ("run", *shared)))
    if stage not in names:
        raise BadInput(f"--stage={stage}: the recipe has {', '.join(names)}")
    return (Job(stage, ("train", *shared, f"--stage={stage}")),)


def place_trials(
    trials: Sequence[Trial],
    workdir: str,
    *,
    stage: str | None,
    sweep_file: str | None,
    package: str,
    base: str | None = None,
    words: Sequence[str] = (),
) -> list[LaunchedTrial]:
    """Gives every trial its workdir: WORKDIR itself, or WORKDIR/000, WORKDIR/001, ... in a sweep.

    Args:
      trials: of `expand`, or one.
      workdir: of the whole.
      stage: where only one is to run.
      sweep_file: what the trials come from.
      package: the digest of the code that runs.
      base: a run whose data and earlier stages the trials take.
      words: flags of every job.

    Raises:
      BadInput: as `jobs_of` and `SharedPhases.of`.
    """
    launched = []
    for number, trial in enumerate(trials):
        name = f"{number:03d}" if sweep_file else ""
        place = str(pathlib.PurePosixPath(workdir) / name)
        shared = SharedPhases.of(base, trial.config, stage) if base else None
        jobs = jobs_of(trial, place, stage, shared.stages if shared else (), words)
        record = {
            "sweep": sweep_file,
            "trial": number,
            "parameters": dict(trial.parameters),
            "gin_files": list(trial.gin_files),
            "gin_params": list(trial.gin_params),
            "stage": stage,
            "fingerprint": trial.config.fingerprint,
            "package": package,
        }
        launched.append(LaunchedTrial(name, place, jobs, record, shared))
    return launched
