"""A whole run by several processes: killed, resumed by another number of them, to the results of one process."""

import json
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from helpers import job, torus
from helpers.python_code import write_packages
from helpers.small_recipe import SCORES, STAGES, command

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import DONE, PREEMPTED, PROCESS_LOST
from pplx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.long

DEVICES, STEPS = 4, 2
RECIPE = (
    "Mesh.fsdp=-1",
    "Training.packing_groups=2",
    "Optimizer.eps=1e-3",  # a larger one keeps rounding errors from becoming whole steps
    "run.term_weights=@TermWeights()",
    *(f"{stage}/Training.steps={STEPS}" for stage in STAGES),
)
IN_ORDER_OF_A_TORUS = (
    f"{torus.CODE}\nimport sys\nfrom pplx_jax.cli import main as cli\nsys.exit(cli.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))


@pytest.fixture(scope="module")
def prepared(packages, tmp_path_factory):
    """A workdir with corpus, vocabulary and token tables."""
    workdir = tmp_path_factory.mktemp("prepared") / "run"
    assert cli.main([*command(packages, workdir, *RECIPE), "--until=data"]) == DONE
    return workdir


def start(arguments, count: int) -> list[subprocess.Popen]:
    """`count` processes that share the devices, as one job."""
    if count == 1:
        return [job.start_python(["-m", "pplx_jax", *arguments], devices=DEVICES)]
    shared = [f"--coordinator=127.0.0.1:{job.free_ports()}", f"--num_processes={count}"]
    return [
        job.start_python(
            ["-c", IN_ORDER_OF_A_TORUS, *arguments, *shared, f"--process_id={index}"], devices=DEVICES // count
        )
        for index in range(count)
    ]


def test_a_run_that_is_killed_and_changes_its_processes_ends_as_that_of_one(packages, prepared, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    for workdir in (one, many):
        shutil.copytree(prepared, workdir)
    codes, said = job.ends(start(command(packages, one, *RECIPE), 1))
    assert codes == [DONE], said

    seed = random.randrange(1000)
    print("seed", seed)
    chance = random.Random(seed)
    arguments = command(packages, many, *RECIPE)
    # Four processes; one is killed while they train.
    running, stage = start(arguments, 4), chance.choice(STAGES[:2])
    job.wait_until(running, lambda: read_metrics(many / stage / "metrics.jsonl"))
    time.sleep(chance.uniform(0.0, 1.0))
    victim = chance.randrange(4)
    running[victim].send_signal(signal.SIGKILL)
    codes, said = job.ends(running)
    assert codes == [-signal.SIGKILL if index == victim else PROCESS_LOST for index in range(4)], said
    assert all(f"process {victim} (" in text for index, text in enumerate(said) if index != victim)

    # Two processes; both are asked to stop, in training or while the first one works alone.
    running, stage = start(arguments, 2), chance.choice(STAGES[2:])
    job.wait_until(running, lambda: read_metrics(many / stage / "metrics.jsonl"))
    time.sleep(chance.uniform(0.0, 3.0))
    for process in running:
        process.send_signal(signal.SIGTERM)
    codes, said = job.ends(running)
    assert codes == [PREEMPTED] * 2, said

    codes, said = job.ends(start(arguments, 4))
    assert codes == [DONE] * 4, said
    found = [json.loads((workdir / "results.json").read_text()) for workdir in (one, many)]
    assert {*SCORES, "initial"} <= found[0].keys() == found[1].keys()
    for name in found[0].keys() - {"seconds", "environment"}:
        assert found[0][name] == found[1][name], name
    for name in (*STAGES, "merged"):
        for a, b in zip(*(leaves(workdir / name) for workdir in (one, many)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    listed = [{path.name for path in workdir.iterdir()} for workdir in (one, many)]
    assert listed[0] == listed[1] and {"export", "index", "report.html"} <= listed[1]


def leaves(folder):
    import jax

    return jax.tree.leaves(load_params(folder))
