"""A sweep of the pair stage through XManager's own local executor: real processes, one of them refused."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.tiny import LENGTH, WIDTH, tiny_tables, tiny_vocabulary

from pplx_jax.cli import main as cli
from pplx_jax.configuration import load
from pplx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = "gin/recipes/quickstart_scratch.gin"
SMALL = (
    "VOCABULARY=332",
    *(f"Qwen3Config.{name}={size}" for name, size in {"width": WIDTH, "mlp_width": 16, "head_dim": 16}.items()),
    "run.stages=[@pair/Training()]",
    "pair/Optimizer.warmup_steps=0",
    "Logging.every_steps=1",
    "Logging.writers=[]",  # TensorBoard's imports TensorFlow
    "PairStage.batch_size=8",
    f"PairStage.row_length={LENGTH}",
    "PairStage.slots=8",
    "Training.evaluation=None",  # the base has no evaluation sets
)
RATES = (1e-3, 1e-2, 1e-1)
SWEEP = f"""
sweep.gin_files = ('{RECIPE}',)
sweep.parts = [@Product()]
Product.values = {{'pair/Optimizer.peak_learning_rate': {RATES}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tree to launch from, a copy that has a sweep more, and a run whose data trials take."""
    folder = tmp_path_factory.mktemp("launch")
    root = folder / "tree"
    for name in ("pplx_jax", "gin", "launch"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    (root / "gin" / "sweeps" / "rates.gin").write_text(SWEEP)

    base = folder / "base"
    (base / "data").mkdir(parents=True)
    tiny_tables(base / "data" / "tokens", tiny_vocabulary(base / "data"))
    (base / "config.gin").write_text(load([RECIPE], SMALL).resolved())
    return folder


def command(folder, workdir, *params, steps=3):
    words = [sys.executable, "launch/xm_launch.py", "--sweep=gin/sweeps/rates.gin", "--stage=pair"]
    words += [f"--base={folder / 'base'}", f"--workdir={folder / workdir}"]
    return [*words, *(f"--gin_param={param}" for param in (*SMALL, *params, f"pair/Training.steps={steps}"))]


def environment(folder):
    return {**os.environ, "HOME": str(folder), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def launched(place):
    """The finished launch and the workdir of its sweep, whose last trial finds its place taken."""
    folder = place
    taken = folder / "sweep" / "002"
    taken.mkdir(parents=True)
    (taken / "trial.json").write_text('{"trial": 2, "gin_params": ["of another sweep"]}')

    words, where = command(folder, "sweep"), folder / "tree"
    done = subprocess.run(words, cwd=where, env=environment(folder), capture_output=True, text=True, timeout=600)
    return done, folder / "sweep"


def test_an_interrupted_launch_takes_its_jobs_with_it(place):
    words = command(place, "interrupted", "pair/Logging.every_steps=100000", steps=10**6)
    quiet = subprocess.DEVNULL
    launcher = subprocess.Popen(words, cwd=place / "tree", env=environment(place), stdout=quiet, stderr=quiet)
    wait_until(lambda: (place / "interrupted" / "000" / "trial.json").exists(), launcher)
    assert jobs_in(place / "interrupted")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
    try:
        wait_until(lambda: not jobs_in(place / "interrupted"), seconds=30)
    finally:
        for job in jobs_in(place / "interrupted"):
            os.kill(int(job), signal.SIGKILL)


def wait_until(happened, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


def jobs_in(workdir):
    """Processes of this machine that were given the workdir of one of the trials."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"--workdir={workdir}/0".encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue  # it has ended
    return found


def test_every_trial_trains_with_its_own_rate(launched):
    done, workdir = launched
    for number, rate in enumerate(RATES[:2]):
        trial = workdir / f"{number:03d}"
        rows = read_metrics(trial / "pair" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3], done.stdout + done.stderr
        assert rows[0]["learning_rate"] == pytest.approx(rate)
        record = json.loads((trial / "trial.json").read_text())
        assert record["parameters"] == {"pair/Optimizer.peak_learning_rate": rate}
        assert record["gin_params"] == [*SMALL, "pair/Training.steps=3", f"pair/Optimizer.peak_learning_rate={rate}"]
        assert record["stage"] == "pair" and record["sweep"] == "gin/sweeps/rates.gin"


def test_what_ran_is_the_copy_of_the_tree(launched):
    done, workdir = launched
    [package] = (workdir / "packages").iterdir()
    assert package.name == json.loads((workdir / "000" / "trial.json").read_text())["package"]
    assert (package / "gin" / "sweeps" / "rates.gin").exists() and not list(package.rglob("__pycache__/test_*"))
    assert {path.name for path in package.iterdir()} >= {"pplx_jax", "gin", "launch", "Dockerfile", "constraints.txt"}


def test_a_trial_that_fails_is_told_and_stops_no_other(launched):
    done, workdir = launched
    assert done.returncode == 1
    assert "belongs to another trial" in done.stdout + done.stderr
    assert f"{workdir / '002'}: pair failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workdir / "002" / "pair").exists()


def test_the_report_ranks_those_that_finished(launched, capsys):
    _, workdir = launched
    assert cli.main(["report", str(workdir), "--metric=pair.loss", "--json"]) == cli.DONE
    result = json.loads(capsys.readouterr().out)
    assert (result["finished"], result["unfinished"]) == (2, 1)
    assert result["parameters"] == ["pair/Optimizer.peak_learning_rate"]
    losses = [read_metrics(workdir / name / "pair" / "metrics.jsonl")[-1]["loss"] for name in ("000", "001")]
    assert [row["value"] for row in result["trials"][:2]] == sorted(losses)
    assert [row["rank"] for row in result["trials"]] == [1, 2, None] and result["trials"][2]["trial"] == "002"


def test_a_dry_run_needs_no_xmanager(tmp_path):
    block = "import sys, runpy; sys.modules['xmanager'] = None; sys.argv = sys.argv[1:]; "
    words = ["--sweep=gin/sweeps/pair_temperature_and_rate.gin", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    command = [sys.executable, "-c", block + "runpy.run_path(sys.argv[0], run_name='__main__')", "launch/xm_launch.py"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pplx-jax run --gin_file=gin/recipes/quickstart_scratch.gin") == 9 * 5
    assert "PairStage.temperature=0.05" in done.stdout and "9 trials, 45 jobs" in done.stdout
    assert not list(tmp_path.iterdir())
