"""Turns trials into jobs, one for each stage: the arguments of `pplx-jax` and the environment of each job."""

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

LAST_JOB = "finish"  # after the stages: merge, scores, exports, index, report


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of `pplx-jax`.

    Attributes:
      name: name of the stage.
      args: the arguments of `pplx-jax`.
    """

    name: str
    args: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LaunchedTrial:
    """A trial with its workdir and jobs.

    Attributes:
      name: its number in a sweep, else "".
      workdir: a path on the machine that runs it.
      jobs: they run one after another.
      record: the contents of `trial.json`.
      shared: what it links from an existing run.
    """

    name: str
    workdir: str
    jobs: tuple[Job, ...]
    record: Mapping[str, Any]
    shared: SharedPhases | None = None

    def cloud_name(self, job: Job) -> str:
        """Returns the name of a job in the cloud, a function of the workdir, the recipe and the job."""
        identity = f"{self.workdir}\n{self.record['fingerprint']}"
        return f"pplx-{hashlib.sha256(identity.encode()).hexdigest()[:10]}-{job.name}"

    def shown(self, job: Job) -> dict[str, Any]:
        """Returns the arguments that XManager shows of a job: the parameters of the trial first."""
        files, params = list(self.record["gin_files"]), list(self.record["gin_params"])
        about = {"stage": job.name, "workdir": self.workdir, "gin_file": files, "gin_param": params}
        return {**self.record["parameters"], **about}

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that `launch/entry.py` reads."""
        note: dict[str, Any] = {"workdir": self.workdir, "record": self.record}
        if self.shared:
            note |= {"base": self.shared.base, "links": list(self.shared.links)}
        return {"PPLX_TRIAL": json.dumps(note, sort_keys=True)}


def stage_names(trial: Trial) -> list[str]:
    """Returns the names of the stages of a trial's recipe, in order."""
    arguments = trial.config.arguments.get("run")
    if arguments is None or "stages" not in arguments:
        raise BadInput(f"{', '.join(trial.gin_files)}: not a recipe: nothing binds run.stages")
    return [training.stage.name for training in arguments["stages"]]


def require_mesh(trial: Trial, slices: TpuSlices) -> None:
    """Checks that the mesh uses all requested chips.

    Raises:
      BadInput: it does not.
    """
    mesh = (trial.config.arguments.get("run") or {}).get("mesh") or Mesh()
    sizes = mesh.sizes(slices.all_chips)
    if sizes["slice"] != slices.num_slices:
        fix = "--gin_file=gin/meshes/multislice.gin and Mesh.slice" if slices.num_slices > 1 else "Mesh.slice=1"
        raise BadInput(f"mesh {mesh} has {sizes['slice']} slices, --num_slices={slices.num_slices}; give {fix}")
    if (used := math.prod(sizes.values())) != slices.all_chips:
        raise BadInput(
            f"mesh {mesh} has {used} chips, --tpu={slices.kind} --topology={slices.topology} has {slices.all_chips}; "
            "give --gin_file=gin/meshes/fsdp.gin, or set one size to -1 to take all"
        )


def jobs_of(
    trial: Trial, workdir: str, stage: str | None, done: Sequence[str] = (), words: Sequence[str] = ()
) -> tuple[Job, ...]:
    """Returns a job for each stage that is not `done`, and one for what follows them; with `stage`, that stage alone.

    Args:
      trial: the trial to run.
      workdir: its workdir.
      stage: the only stage to train, or None.
      done: stages that another run has trained.
      words: further flags of every job.

    Raises:
      BadInput: the recipe does not have this stage.
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
    """Returns every trial with its workdir: WORKDIR itself, or WORKDIR/000, WORKDIR/001, ... in a sweep.

    Args:
      trials: the result of `expand`, or one trial.
      workdir: workdir of the sweep or the run.
      stage: the only stage to train, or None.
      sweep_file: the file that the trials come from, or None.
      package: digest of the code that runs.
      base: a run from which the trials take the data and earlier stages.
      words: further flags of every job.

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
