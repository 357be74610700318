"""Several processes as one job: real ones on loopback, with four simulated devices each, against one process."""

import dataclasses
import json
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest
from helpers import job, tiny

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.errors import PREEMPTED, PROCESS_LOST, BadInput
from pplx_jax.parallel.processes import Processes
from pplx_jax.training.goodput import FILE
from pplx_jax.training.metrics import read_metrics

GROUPS, STEPS = 2, 4
# What one process and two share.
COMMON = """
def fields(name):
    return dict(
        stage=tiny.with_sequences(tiny.STAGES[name], 4), optimizer=tiny.ROBUST_OPTIMIZER, packing_groups=2, seed=3,
        checkpoint_every_steps=1,
    )

def run_until(step, *arguments, **keywords):
    # Process 1 is asked to stop once it has seen the step before; all stop one step later.
    require_finite = loop._require_finite
    def require(stage, at, numbers):
        require_finite(stage, at, numbers)
        if at == step - 1 and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    loop._require_finite = require
    try:
        run(*arguments, **keywords)
        raise AssertionError("it was to be stopped")
    except Preempted as stop:
        print(stop)
    finally:
        loop._require_finite = require_finite

import jax
"""
ALONE = (
    COMMON
    + """
for name in tiny.STAGES:
    run(setting, output / "one" / name, name, **fields(name))
run_until(2, setting, output / "from_one", "pair", **fields("pair"))
"""
)
TOGETHER = (
    COMMON
    + """
with joined(Processes()):
    assert (len(jax.devices()), len(jax.local_devices())) == (8, 4)
    eight = Mesh(data=2, fsdp=4)
    for name in tiny.STAGES:
        run(setting, output / "two" / name, name, mesh=eight, **fields(name))
    run(setting, output / "from_one", "pair", mesh=eight, **fields("pair"))
    run_until(2, setting, output / "from_two", "pair", mesh=eight, **fields("pair"))
"""
)
AGAIN_ALONE = (
    COMMON
    + """
run(setting, output / "from_two", "pair", **fields("pair"))
"""
)
# The second process of two dies at its third step, after the computation and before anything of it is kept.
DYING = (
    COMMON
    + """
require_finite = loop._require_finite

def require(stage, step, numbers):
    if step == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    require_finite(stage, step, numbers)

loop._require_finite = require
with joined(Processes()):
    run(setting, output / "died", "pair", mesh=Mesh(data=2, fsdp=4), **fields("pair"))
"""
)
FAILING = """
with joined(Processes()):
    import jax
    if jax.process_index() == 1:
        raise ValueError("its disk is gone")
    run(setting, output / "failed", "pair", mesh=Mesh(data=8))
"""


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.tiny_tables(folder, tiny.tiny_vocabulary(folder))
    return folder


@pytest.fixture(scope="module")
def output(setting, tmp_path_factory):
    """Every stage in one process and in two, and a stage moved from one to two and from two to one."""
    folder = tmp_path_factory.mktemp("processes")
    (stopped,) = job.finish([job.start(ALONE, setting, folder)])
    assert "asked to stop at step 2" in stopped  # alone it is at once
    stopped = job.finish(job.start_job(TOGETHER, setting, folder, count=2, devices=4))
    assert all("asked to stop at step 3" in said for said in stopped)  # both, a step after one of them was asked
    assert not (folder / "from_two" / "finished.json").exists()
    job.finish([job.start(AGAIN_ALONE, setting, folder)])
    return folder


def assert_close(one: pathlib.Path, two: pathlib.Path) -> None:
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    for name in ("loss", "fill", "cut_tokens", "gradient_norm", "parameter_norm"):
        np.testing.assert_allclose(*[[row[name] for row in found] for found in rows], rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), load_params(one), load_params(two)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.STAGES)
def test_two_processes_of_four_devices_compute_what_one_device_does(output, name):
    assert_close(output / "one" / name, output / "two" / name)


@pytest.mark.slow
def test_the_comparison_can_fail(output):
    with pytest.raises(AssertionError):
        assert_close(output / "one" / "pair", output / "two" / "triplet")


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(output):
    assert_close(output / "one" / "pair", output / "from_one")


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(output):
    assert_close(output / "one" / "pair", output / "from_two")
    assert json.loads((output / "from_two" / FILE).read_text())["starts"] == 2


@pytest.mark.slow
def test_one_process_writes_what_there_is_one_of(output):
    names = {path.name for path in (output / "two" / "pair").iterdir()}
    assert {"config.gin", "metrics.jsonl", "model-info.txt", "model.json", "goodput.json", "finished.json"} <= names
    rows = read_metrics(output / "two" / "pair" / "metrics.jsonl")
    assert len(rows) == STEPS


@pytest.mark.slow
def test_a_killed_process_is_named_by_the_other_and_the_job_goes_on(setting, output):
    first, second = job.start_job(DYING, setting, output, count=2, devices=4)
    second.communicate(timeout=300)
    died = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert first.returncode == PROCESS_LOST, errors
    assert re.search(rf"process 1 \(\S+, pid {second.pid}\) died; process 0 of 2 stops too; start all", errors), errors
    assert not (output / "died" / "finished.json").exists()
    code = COMMON + 'run(setting, output / "died", "pair", **fields("pair"))'
    job.finish([job.start(code, setting, output)])
    assert_close(output / "one" / "pair", output / "died")


@pytest.mark.slow
def test_a_failure_of_one_process_stops_the_other_with_its_reason(setting, tmp_path):
    first, second = job.start_job(FAILING, setting, tmp_path, count=2, devices=4)
    _, errors = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert first.returncode == PROCESS_LOST, errors
    assert f"pid {second.pid}) failed: ValueError: its disk is gone; process 0 of 2 stops too" in errors


RECIPE = """
run.stages = [@diffusion/Training()]
run.model = @Qwen3Config()
run.mesh = @Mesh()
run.processes = @Processes()
Processes.startup_seconds = 200
Mesh.data = 8
diffusion/Training.stage = @DiffusionStage()
Training.optimizer = @Optimizer()
Training.logging = @Logging()
Training.steps = 1000000
Logging.every_steps = 1
Logging.writers = []
Training.packing_groups = 2
Optimizer.peak_learning_rate = 0.01
DiffusionStage.batch_size = 8
DiffusionStage.row_length = 32
"""


@pytest.mark.slow
def test_from_the_command_line_all_stop_where_one_is_asked_to(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    (tmp_path / "run" / "data").mkdir(parents=True)
    vocabulary.save(tmp_path / "run" / "data")
    tiny.tiny_tables(tmp_path / "run" / "data" / "tokens", vocabulary)
    sizes = dataclasses.asdict(tiny.tiny_config(vocabulary))
    model = "".join(f"Qwen3Config.{name} = {value!r}\n" for name, value in sizes.items())
    (tmp_path / "tiny.gin").write_text(RECIPE + model)
    command = ["train", "--stage=diffusion", f"--gin_file={tmp_path / 'tiny.gin'}", f"--workdir={tmp_path / 'run'}"]
    command += [f"--coordinator=127.0.0.1:{job.free_ports()}", "--num_processes=2"]
    both = [job.start_python(["-m", "pplx_jax", *command, f"--process_id={index}"], devices=4) for index in range(2)]
    deadline = time.monotonic() + 200
    while len(read_metrics(tmp_path / "run" / "diffusion" / "metrics.jsonl")) < 2:
        assert all(process.poll() is None for process in both), [process.communicate()[1][-2000:] for process in both]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [PREEMPTED, PREEMPTED], said
    steps = [re.search(r"pplx-jax: diffusion: asked to stop at step (\d+), which is saved", text)[1] for text in said]
    assert steps[0] == steps[1]
    assert (tmp_path / "run" / "diffusion" / "checkpoints" / steps[0]).is_dir()
    assert "process 1 of 2: waiting for process 0 at 127.0.0.1:" in said[1]
    assert "process 0 of 2: all processes are connected: process 0 (" in said[0]


# --- What is said of them


def test_one_process_where_nothing_is_said():
    assert not Processes().resolved({}).several
    assert not Processes(num_processes=1).resolved({"JAX_COORDINATOR_ADDRESS": "a:1"}).several


def test_flags_win_over_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert Processes().resolved(environment) == Processes("a:1", 4, 3)
    assert Processes(coordinator="b:2", process_id=0).resolved(environment) == Processes("b:2", 4, 0)
    assert Processes(coordinator="auto").resolved({}).several


@pytest.mark.parametrize(
    "said, message",
    [
        ({"num_processes": 2}, "num_processes 2 without --coordinator and --process_id"),
        ({"coordinator": "a:1", "num_processes": 2}, "without --process_id"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "process_id 2 of num_processes 2"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "coordinator a is not HOST:PORT"),
        ({"coordinator": "a:65535", "num_processes": 2, "process_id": 0}, "is not HOST:PORT"),
    ],
)
def test_half_of_it_is_bad_input(said, message):
    with pytest.raises(BadInput, match=message):
        Processes(**said).resolved({})


def test_a_value_that_is_not_a_number_is_bad_input():
    with pytest.raises(BadInput, match="JAX_PROCESS_ID=x is not a number"):
        Processes().resolved({"JAX_PROCESS_ID": "x"})
