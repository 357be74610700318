r"""Launches a recipe or one stage of it, once or as a sweep, on this machine or on TPU slices in the cloud.

    python launch/xm_launch.py --gin_file=gin/recipes/quickstart.gin --workdir=$PWD/run
    python launch/xm_launch.py --sweep=gin/sweeps/merge_weight.gin --base=$PWD/run --workdir=$PWD/sweeps/merge
    python launch/xm_launch.py --gin_file=gin/recipes/pplx_embed_4b.gin --stage=diffusion --workdir=/gcs/BUCKET/run \
        --executor=kubernetes --tpu=v5e --topology=16x16 --repository=us-docker.pkg.dev/PROJECT/REPOSITORY
    python launch/xm_launch.py --embed="--model=/run/merged --input=/texts --output=/vectors" --num_slices=4 \
        --workdir=$PWD/embedding

Each stage is a job; the next one starts when it has succeeded. This process waits for all jobs. If it is interrupted,
run the same command again: finished jobs return at once, running ones are waited for, interrupted ones resume from
their last checkpoint. The same command with `--stop` stops its jobs in the cloud. `--dry_run` prints trials, commands
and requests, and does not need XManager.
"""

import asyncio
import functools
import importlib.util
import json
import pathlib
import shlex
import signal
import sys

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # when run as a script, and by `xmanager launch`

from launch import jobs, launch_flags, package, sweep  # noqa: E402
from launch.embedding import embedding_trials  # noqa: E402
from pplx_jax.configuration import load  # noqa: E402
from pplx_jax.core.errors import BadInput  # noqa: E402

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
flags.adopt_module_key_flags(launch_flags)  # so that --help shows them


def plan(options: launch_flags.Options) -> list[jobs.LaunchedTrial]:
    """Returns the requested trials, checked and with their workdirs.

    Raises:
      BadInput: a flag, a recipe or a sweep is wrong.
    """
    options.check()
    if options.embed is not None:
        digest, slices = package.digest_of(), options.embed_slices
        return embedding_trials(options.embed, options.workdir, slices=slices, package=digest, host_words=options.words)
    package.require_absolute(options.gin_params)
    files = tuple(package.packaged_name(file) for file in options.gin_files)
    sweep_file = package.packaged_name(options.sweep) if options.sweep else None
    if sweep_file:
        trials = sweep.expand(sweep_file, files, options.gin_params)
    elif files:
        trials = [sweep.Trial({}, files, tuple(options.gin_params), load(files, options.gin_params))]
    else:
        raise BadInput("nothing to launch; give --gin_file, --sweep or --embed")
    if options.slices:
        for trial in trials:
            jobs.require_mesh(trial, options.slices)
    return jobs.place_trials(
        trials,
        options.workdir,
        stage=options.stage,
        sweep_file=sweep_file,
        package=package.digest_of(),
        base=options.base,
        words=options.words,
    )


def show(trials: list[jobs.LaunchedTrial], options: launch_flags.Options) -> None:
    """Prints the trials; in a dry run also their commands and, for the cloud, the first request in full."""
    for trial in trials:
        parameters = "  ".join(f"{name}={value!r}" for name, value in trial.record["parameters"].items())
        print(f"{trial.workdir}  {parameters}".rstrip())
        if trial.shared:
            print(f"  from {trial.shared.base}: {', '.join(trial.shared.links)}")
        for job in trial.jobs if options.dry_run else ():
            print(f"  {job.name}: {shlex.join(['pplx-jax', *job.args])}")
    first = trials[0]
    name, image = first.cloud_name(first.jobs[0]), options.image or f"{options.repository}/pplx-jax:TAG"
    request = options.request(name, image, first.jobs[0].args, first.environment())
    if request and options.dry_run:
        print(json.dumps(request, indent=2))
    print(f"{len(trials)} trials, {sum(len(trial.jobs) for trial in trials)} jobs, executor {options.executor}")


async def launch(trials: list[jobs.LaunchedTrial], options: launch_flags.Options) -> int:
    """Runs all trials until they end; returns the number of failed ones."""
    _require_xmanager()
    from xmanager import xm, xm_local

    async def submitted(unit: xm.ExperimentUnit, job: xm.Job, **_: object) -> None:
        await unit.add(job)

    at_a_time = asyncio.Semaphore(options.parallel or (1 if options.executor == "local" else len(trials)))
    succeeded: list[bool] = []

    async def succeeds(trial: jobs.LaunchedTrial) -> bool:
        async with at_a_time:
            for job in trial.jobs:
                executor = options.make_executor(trial.cloud_name(job))
                name = "_".join(filter(None, [trial.name, job.name]))
                words = [*first_words, *job.args]
                xm_job = xm.Job(executable, executor, name=name, args=words, env_vars=trial.environment())
                try:
                    # The arguments of a unit are what XManager shows of it; a job alone would show its environment.
                    unit = await experiment.add(functools.partial(submitted, job=xm_job), args=trial.shown(job))
                    await unit.wait_until_complete()
                except (xm.ExperimentUnitError, RuntimeError) as error:
                    print(f"{trial.workdir}: {job.name} failed: {error}", file=sys.stderr)
                    return False
        return True

    try:
        async with xm_local.create_experiment(options.title or _title(options)) as experiment:
            executable, first_words = options.executable(experiment)
            succeeded += await asyncio.gather(*(succeeds(trial) for trial in trials))
    except RuntimeError:
        if not succeeded:
            raise
        # Otherwise a job failed, which is reported above; XManager raises it again at the end of the experiment.
    return succeeded.count(False)


def stop(trials: list[jobs.LaunchedTrial], options: launch_flags.Options) -> None:
    """Stops the jobs of the trials that are in the cloud."""
    _require_xmanager()
    for trial in trials:
        for job in trial.jobs:
            handle = options.make_executor(trial.cloud_name(job)).find()
            if handle is not None:
                handle.stop()
            print(f"{trial.workdir}: {job.name}: {'not there' if handle is None else f'stopping {handle}'}")


def _require_xmanager() -> None:
    if importlib.util.find_spec("xmanager") is None:
        raise BadInput("XManager is not installed: pip install -c constraints.txt -e '.[launch]'; or give --dry_run")


def _interrupted(*_: object) -> None:
    """Exits at once. XManager would wait for its jobs; at exit it stops those on this machine."""
    print(
        "xm_launch: interrupted; jobs in the cloud keep running; run the same command to wait for them, or with --stop "
        "to stop them",
        file=sys.stderr,
    )
    sys.exit(INTERRUPTED)


def _title(options: launch_flags.Options) -> str:
    return "embed" if options.embed is not None else pathlib.PurePosixPath(options.sweep or options.gin_files[0]).stem


def parse_flags(argv: list[str]) -> list[str]:
    """Returns the arguments that are not flags. A wrong flag gives one line and exit code 2."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_complain(f"{error}; see --help"))


def _complain(message: str) -> int:
    print(f"xm_launch: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 all done, 1 a trial failed, 2 bad input, 130 interrupted."""
    try:
        if argv[1:]:
            raise BadInput(f"unknown arguments: {shlex.join(argv[1:])}; use flags only, see --help")
        options = launch_flags.options()
        trials = plan(options)
        show(trials, options)
        if options.dry_run:
            return DONE
        if importlib.util.find_spec("xmanager") is None:
            raise BadInput(
                "XManager is not installed: pip install -c constraints.txt -e '.[launch]'; or give --dry_run"
            )
        if options.stop:
            stop(trials, options)
            return DONE
        signal.signal(signal.SIGINT, _interrupted)
        signal.signal(signal.SIGTERM, _interrupted)
        logging.set_verbosity(logging.WARNING)  # XManager logs much about its database
        return FAILED if asyncio.run(launch(trials, options)) else DONE
    except BadInput as error:
        return _complain(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
