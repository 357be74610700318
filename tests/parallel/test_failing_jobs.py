"""Jobs of real processes that fail: each process exits with the right code and a line that says why."""

import re
import signal
import subprocess
import time

import pytest
from helpers import job, tiny
from helpers.python_code import write_packages
from helpers.small_recipe import command

from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST

pytestmark = pytest.mark.slow

MAIN = """
import sys, time
from pplx_jax.cli import main as cli
from pplx_jax.parallel import same_job
from pplx_jax.recipes import recipe

same_job._VISIBLE_SECONDS = 0.5
load, index, count = recipe.load_vocabulary, *(int(sys.argv[place].partition("=")[2]) for place in (-1, -2))

def late(folder):  # the first process fails last
    time.sleep(0.5 * (count - 1 - index))
    return load(folder)

recipe.load_vocabulary = late
sys.exit(cli.main(sys.argv[1:]))
"""


def start(commands: list[list[str]]) -> list[subprocess.Popen]:
    """Starts one job with a process for each command."""
    shared = [f"--coordinator=127.0.0.1:{job.free_ports()}", f"--num_processes={len(commands)}"]
    return [
        job.start_python(["-c", MAIN, *one, *shared, f"--process_id={index}"]) for index, one in enumerate(commands)
    ]


def ends(running: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Returns the exit codes, and the lines that say why."""
    codes, said = job.ends(running, timeout=120)
    lines = ["\n".join(re.findall(r"^pplx-jax: (.*)", text, re.MULTILINE)) for text in said]
    assert all(lines), said
    return codes, lines


def test_each_process_reports_its_own_bad_input(tmp_path):
    train = ["train", "--stage=pair", *command(tmp_path, tmp_path / "run")[1:]]
    codes, lines = ends(start([train] * 4))
    assert codes == [BAD_INPUT] * 4, lines
    assert all(line.startswith("error: cannot read vocabulary") and "stops too" not in line for line in lines), lines


def test_sigterm_to_one_while_the_first_works_alone_stops_both(tmp_path):
    packages = write_packages(tmp_path / "code", ("alpha", "beta", "gamma"))
    running = start([[*command(packages, tmp_path / "run", "Mesh.fsdp=-1"), "--until=data"]] * 2)
    vocabulary = tmp_path / "run" / "phases" / "vocabulary.json"
    job.wait_until(running, vocabulary.exists)  # the next phase takes long
    time.sleep(0.5)
    running[1].send_signal(signal.SIGTERM)
    codes, lines = ends(running)
    assert codes == [PREEMPTED] * 2, lines
    assert not (tmp_path / "run" / "phases" / "tokenize.json").exists()
    assert "was stopped by SIGTERM; process 0 of 2 stops too" in lines[0]
    assert "stopped by SIGTERM; the same command resumes" in lines[1]


def test_a_process_with_another_recipe_is_refused_at_the_start(tmp_path):
    one, other = (command(tmp_path, tmp_path / "run", f"PairStage.batch_size={size}") for size in (16, 32))
    codes, lines = ends(start([one, other]))
    assert codes == [BAD_INPUT] * 2, lines
    words = r"process 1 \(.*\) does not run what process 0 \(.*\) runs: the recipe is PairStage.batch_size = 32 there"
    assert all(re.search(words, line) for line in lines), lines
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_see_the_workdir_is_refused_at_the_start(tmp_path):
    one, other = (command(tmp_path, tmp_path / name) for name in ("run", "elsewhere"))
    codes, lines = ends(start([one, other]))
    assert codes == [BAD_INPUT] * 2, lines
    assert all(re.search(r"process 1 \(.*\) does not see in .* what process 0", line) for line in lines), lines
    assert not list(tmp_path.iterdir())


STUCK = """
from pplx_jax.parallel import stuck

stuck._QUIET_SECONDS = 4.0
require_finite = loop._require_finite

def require(stage, step, numbers):
    if step == 2 and jax.process_index() == 1:
        time.sleep(1000)
    require_finite(stage, step, numbers)

loop._require_finite = require
with joined(Processes(coordinator="auto", stuck_seconds=8)):
    import jax
    run(setting, output / "stuck", "pair", mesh=Mesh(data=2), packing_groups=2, steps=5, log_every_steps=1)
"""


def test_a_process_that_is_stuck_is_named_by_all(tmp_path):
    tiny.tiny_tables(tmp_path, tiny.tiny_vocabulary(tmp_path))
    slice_of_two = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1", "JAX_COORDINATOR_PORT": str(job.free_ports())}
    running = [job.start(STUCK, tmp_path, tmp_path, TPU_WORKER_ID=str(index), **slice_of_two) for index in range(2)]
    codes, lines = ends(running)
    assert codes == [PROCESS_LOST] * 2, lines
    for line in lines:
        assert re.search(r"no process has moved on for \d+ s: waiting for process 1 \(.*\), in pair step 2 \(", line)
        assert "training/trainer.py:" in line and "the others wait in pair step 2" in line and "it is stuck" in line
