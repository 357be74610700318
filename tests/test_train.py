"""The training loop on the tiny model: every stage, what a kill leaves behind, what is refused and when."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh

from pplx_jax import train as loop
from pplx_jax.checkpointing import load_params
from pplx_jax.data.token_files import TokenTable
from pplx_jax.errors import BadInput
from pplx_jax.metrics import read_metrics
from pplx_jax.model_folder import load_config
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.rules import MESH_AXES
from pplx_jax.train import FINISHED, NonFiniteLoss, Training, train

STEPS = 4
ONE = Mesh()
STILL = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=0.0)
CLOCK = {"tokens_per_second", "data_wait_seconds"}  # numbers of the machine, not of the run


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the runs of this file share."""

    folder: pathlib.Path
    vocabulary: object
    config: Qwen3Config
    tables: dict[str, TokenTable]
    environment: dict[str, str]

    def training(self, name: str, **fields) -> Training:
        usual = {"stage": tiny.STAGES[name], "optimizer": tiny.OPTIMIZER, "steps": STEPS, "log_every_steps": 1}
        return Training(**{**usual, **fields})

    def train(self, folder, name: str, *, seed: int = 3, mesh: Mesh = ONE, start_from=None, config=None, **fields):
        return train(
            folder,
            self.training(name, **fields),
            config or self.config,
            self.tables[name],
            self.vocabulary,
            mesh=mesh,
            seed=seed,
            start_from=start_from,
        )


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Nearly all of a tiny run is compilation, so the runs of this file share theirs."""
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in cache}

    def use(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it reads them once, at its first use

    use(cache)
    yield {name.upper(): str(value) for name, value in cache.items()}
    use(before)


@pytest.fixture(scope="module")
def setting(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = tiny.tiny_vocabulary(folder)
    tables = tiny.tiny_tables(folder, vocabulary)
    return Setting(folder, vocabulary, tiny.tiny_config(vocabulary), tables, compiled_once)


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    """Folders of runs that went through at once, by stage."""
    root = tmp_path_factory.mktemp("whole")
    for stage in tiny.STAGES:
        setting.train(root / stage, stage)
    return {stage: root / stage for stage in tiny.STAGES}


def numbers(folder: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that a rerun must repeat to the last digit."""
    return [{name: row[name] for name in row if name not in CLOCK} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same_params(one: pathlib.Path, two: pathlib.Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, load_params(one), load_params(two))


def differ(one: pathlib.Path, two: pathlib.Path) -> bool:
    pairs = zip(jax.tree.leaves(load_params(one)), jax.tree.leaves(load_params(two)), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


class Interrupted(Exception):
    """Stands for whatever ends a run between two steps."""


def interrupt(monkeypatch, step: int) -> None:
    """Ends the next run while `step` is about to be logged: after its computation, before anything of it is kept."""
    require_finite = loop._require_finite

    def require(stage, at, values):
        if at == step:
            raise Interrupted
        require_finite(stage, at, values)

    monkeypatch.setattr(loop, "_require_finite", require)


# --- What a run leaves


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_a_stage_learns_in_finite_numbers_and_says_so(whole, stage):
    rows = numbers(whole[stage])
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert all(row["gradient_norm"] > 0 and 0 < row["fill"] <= 1 for row in rows)
    # A cosine from 0.01 at step 1 over 4 steps: (1 + cos(pi q)) / 2 of it at q = 0, 1/4, 1/2, 3/4.
    expected = 0.01 * np.array([1, 0.8535534, 0.5, 0.1464466])
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-5)
    finished = json.loads((whole[stage] / FINISHED).read_text())
    assert finished.keys() == {"stage", "steps", "seconds", "compile_seconds", "metrics"}
    assert (finished["stage"], finished["steps"]) == (stage, STEPS)
    assert finished["metrics"]["loss"] == rows[-1]["loss"]
    names = {path.name for path in whole[stage].iterdir()}
    assert {"checkpoints", "config.gin", "metrics.jsonl", "model-info.txt", "model.json", "vocabulary.model"} <= names
    assert not [name for name in names if name.endswith(".partial")]


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_a_seed_settles_every_digit(setting, whole, tmp_path, stage):
    setting.train(tmp_path / "again", stage)
    assert numbers(tmp_path / "again") == numbers(whole[stage])
    assert_same_params(tmp_path / "again", whole[stage])
    setting.train(tmp_path / "other", stage, seed=4)  # control
    assert numbers(tmp_path / "other")[-1]["loss"] != numbers(whole[stage])[-1]["loss"]
    assert differ(tmp_path / "other", whole[stage])


def test_every_so_many_steps_are_logged_and_both_ends(setting, tmp_path, whole):
    setting.train(tmp_path / "run", "diffusion", steps=7, log_every_steps=3)
    assert [row["step"] for row in numbers(tmp_path / "run")] == [1, 3, 6, 7]


def test_a_stage_starts_from_an_earlier_one(setting, whole, tmp_path):
    setting.train(tmp_path / "from", "pair", start_from=whole["diffusion"])
    assert numbers(tmp_path / "from")[0]["loss"] != numbers(whole["pair"])[0]["loss"]
    setting.train(tmp_path / "still", "pair", start_from=whole["diffusion"], optimizer=STILL)
    assert_same_params(tmp_path / "still", whole["diffusion"])  # at a learning rate of nothing it stays there


def test_a_head_of_its_own_is_trained_by_diffusion_alone(setting, tmp_path):
    untied = dataclasses.replace(setting.config, tied=False)
    setting.train(tmp_path / "diffusion", "diffusion", config=untied)
    setting.train(tmp_path / "still", "diffusion", config=untied, optimizer=STILL)
    trained, still = load_params(tmp_path / "diffusion"), load_params(tmp_path / "still")
    assert not np.array_equal(trained["head"]["embedding"], still["head"]["embedding"])
    assert not np.array_equal(still["head"]["embedding"], still["embed"]["embedding"])
    setting.train(tmp_path / "pair", "pair", config=untied, start_from=tmp_path / "diffusion")
    assert "head" not in load_params(tmp_path / "pair") and load_config(tmp_path / "pair").tied


def test_a_finished_stage_is_not_trained_again(setting, whole, monkeypatch):
    folder = whole["diffusion"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(loop, "make_step", None)  # calling it would fail
    summary = setting.train(folder, "diffusion")
    assert summary == json.loads((folder / FINISHED).read_text())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- What an interruption leaves


@pytest.mark.parametrize("stage", tiny.STAGES)
@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(setting, whole, tmp_path, monkeypatch, stage, step):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, step)
        setting.train(tmp_path / stage, stage, checkpoint_every_seconds=0.0)
    assert not (tmp_path / stage / FINISHED).exists()
    summary = setting.train(tmp_path / stage, stage, checkpoint_every_seconds=0.0)
    assert numbers(tmp_path / stage) == numbers(whole[stage])
    assert_same_params(tmp_path / stage, whole[stage])
    assert summary["metrics"]["loss"] == numbers(whole[stage])[-1]["loss"]


def test_steps_past_the_checkpoint_come_again_once(setting, whole, tmp_path, monkeypatch):
    saved = []
    save = loop.Checkpoints.save

    def only_step_one(self, step, state):
        if step in (1, STEPS):
            saved.append(step)
            save(self, step, state)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(loop.Checkpoints, "save", only_step_one)
        interrupt(patched, 4)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_seconds=0.0)
    assert saved == [1]
    assert [row["step"] for row in numbers(tmp_path / "run")] == [1, 2, 3]
    setting.train(tmp_path / "run", "diffusion")
    assert numbers(tmp_path / "run") == numbers(whole["diffusion"])
    assert_same_params(tmp_path / "run", whole["diffusion"])


def test_logging_seldom_a_resumed_run_logs_the_same_steps(setting, tmp_path, monkeypatch):
    fields = {"steps": 7, "log_every_steps": 3}
    setting.train(tmp_path / "whole", "diffusion", **fields)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 5)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_seconds=0.0, **fields)
    setting.train(tmp_path / "run", "diffusion", **fields)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_a_kill_between_the_last_checkpoint_and_the_marker_keeps_the_metrics(setting, whole, tmp_path, monkeypatch):
    def full(*_):
        raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(loop, "write_json", full)
        setting.train(tmp_path / "run", "diffusion")
    summary = setting.train(tmp_path / "run", "diffusion")
    assert summary["metrics"]["loss"] == numbers(whole["diffusion"])[-1]["loss"]
    assert numbers(tmp_path / "run") == numbers(whole["diffusion"])


def test_a_resumed_stage_needs_its_earlier_stage_no_more(setting, whole, tmp_path, monkeypatch):
    setting.train(tmp_path / "whole", "pair", start_from=whole["diffusion"])
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        setting.train(tmp_path / "run", "pair", start_from=whole["diffusion"], checkpoint_every_seconds=0.0)
    setting.train(tmp_path / "run", "pair", start_from=tmp_path / "gone")
    assert_same_params(tmp_path / "run", tmp_path / "whole")


SCRIPT = f"""
import dataclasses, pathlib, sys, time
for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
    sys.modules[name] = None  # importing any of them fails
import tiny
from pplx_jax import train as loop
from pplx_jax.data.token_files import TokenTable
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.parallel.mesh import Mesh

def run(setting, folder, name, **fields):
    vocabulary = Vocabulary.load(setting / "vocabulary.model")
    table = TokenTable.open(setting / name, stage=name, vocabulary=vocabulary)
    mesh = fields.pop("mesh", Mesh())
    usual = dict(stage=tiny.STAGES[name], optimizer=tiny.OPTIMIZER, steps={STEPS}, log_every_steps=1)
    training = loop.Training(**usual | fields)
    loop.train(folder, training, tiny.tiny_config(vocabulary), table, vocabulary, mesh=mesh, seed=3)

setting, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
"""
# A run that waits at its tenth step for the kill, should that be late.
WAITING = """
require_finite = loop._require_finite

def require(stage, step, numbers):
    while step == 10:
        time.sleep(1)
    require_finite(stage, step, numbers)

loop._require_finite = require
"""


def process(setting: Setting, output: pathlib.Path, code: str, **environment: str) -> subprocess.Popen:
    tests = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code, str(setting.folder), str(output)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **setting.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started: subprocess.Popen) -> str:
    output, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors[-3000:]
    return output


def test_a_process_killed_outright_resumes_to_the_same_bits(setting, tmp_path):
    fields = {"steps": 12, "checkpoint_every_seconds": 0.0}
    folder = tmp_path / "killed"
    victim = process(setting, folder, WAITING + f"run(setting, output, 'diffusion', **{fields})")
    deadline = time.monotonic() + 300
    while len(read_metrics(folder / "metrics.jsonl")) < 5:
        assert victim.poll() is None, victim.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (folder / FINISHED).exists()
    assert len(read_metrics(folder / "metrics.jsonl")) < 10
    setting.train(folder, "diffusion", **fields)
    setting.train(tmp_path / "whole", "diffusion", **fields)
    assert [row["step"] for row in numbers(folder)] == list(range(1, 13))
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert_same_params(folder, tmp_path / "whole")


# --- What is refused


def test_a_loss_that_is_no_number_stops_the_stage_before_it_is_kept(setting, whole, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Breaking(type(tiny.STAGES["diffusion"])):
        def loss(self, model, batch, step):
            loss, metrics = super().loss(model, batch, step)
            return jax.numpy.where(step.progress >= 0.5, jax.numpy.nan, loss), metrics  # from step 3 of 4

    stage = Breaking(**vars(tiny.STAGES["diffusion"]))
    with pytest.raises(NonFiniteLoss, match="diffusion step 3: loss is nan"):
        setting.train(tmp_path / "run", "diffusion", stage=stage, checkpoint_every_seconds=0.0)
    assert [row["step"] for row in numbers(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "run" / FINISHED).exists()
    # Logged only at both ends, it is still seen before the checkpoint of step 3 would be written.
    with pytest.raises(NonFiniteLoss, match="diffusion step 3: loss is nan"):
        setting.train(tmp_path / "seldom", "diffusion", stage=stage, log_every_steps=9, checkpoint_every_seconds=0.0)
    assert [path.name for path in (tmp_path / "seldom" / "checkpoints").iterdir()] == ["2"]
    # The mended stage goes on from before it.
    setting.train(tmp_path / "run", "diffusion")
    assert_same_params(tmp_path / "run", whole["diffusion"])


def test_a_mesh_larger_than_the_devices_is_refused_before_anything_is_written(setting, tmp_path):
    with pytest.raises(BadInput, match="wants 64 devices.*lower Mesh.data"):
        setting.train(tmp_path / "run", "diffusion", mesh=Mesh(data=8, fsdp=8))
    assert not (tmp_path / "run").exists()


def test_a_batch_the_mesh_cannot_share_is_refused_before_anything_is_written(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(Mesh, "build", lambda self: AbstractMesh((1, 1, 3, 1, 1), MESH_AXES))
    with pytest.raises(BadInput, match="a batch of 8 cannot be shared by 3 devices .Mesh.fsdp."):
        setting.train(tmp_path / "run", "diffusion")
    assert not (tmp_path / "run").exists()


def test_a_warm_up_longer_than_the_stage_is_refused_before_anything_is_written(setting, tmp_path):
    optimizer = dataclasses.replace(tiny.OPTIMIZER, warmup_steps=STEPS)
    with pytest.raises(BadInput, match="warmup=4 does not fit in steps=4"):
        setting.train(tmp_path / "run", "diffusion", optimizer=optimizer)
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_table_is_refused_before_anything_is_written(setting, tmp_path):
    stage = dataclasses.replace(tiny.STAGES["diffusion"], batch_size=tiny.EXAMPLES + 1)
    with pytest.raises(BadInput, match="24 examples, a batch wants 25"):
        setting.train(tmp_path / "run", "diffusion", stage=stage)
    assert not (tmp_path / "run").exists()


def test_an_earlier_stage_of_another_model_is_refused_by_name(setting, whole, tmp_path):
    wider = tiny.tiny_config(setting.vocabulary, mlp_width=24)
    with pytest.raises(BadInput, match=r"diffusion holds another model: layers\.mlp\.down\.kernel is \(1, 16, 16\)"):
        setting.train(tmp_path / "run", "pair", start_from=whole["diffusion"], config=wider)
    assert not (tmp_path / "run" / "model.json").exists()


def test_a_checkpoint_of_another_model_is_refused_and_its_folder_left_as_it_was(setting, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_seconds=0.0)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(BadInput, match=f"{tmp_path / 'run'}/checkpoints/2 is damaged or of another model"):
        setting.train(tmp_path / "run", "diffusion", config=tiny.tiny_config(setting.vocabulary, mlp_width=24))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("field", ["steps", "log_every_steps", "keep_checkpoints"])
def test_counts_below_one_are_refused_by_name(setting, field):
    with pytest.raises(BadInput, match=f"Training.{field}=0"):
        setting.training("pair", **{field: 0})


# --- Without TensorFlow, and on many devices


def test_training_from_token_files_needs_no_tensorflow(setting, whole, tmp_path):
    finish(process(setting, tmp_path / "run", "run(setting, output, 'pair')"))
    assert numbers(tmp_path / "run") == numbers(whole["pair"])
    assert not (tmp_path / "run" / "tensorboard").exists()


EIGHT = """
import jax
assert len(jax.devices()) == 8
eight = Mesh(data=2, fsdp=4)
# A token that a batch hardly moves has a gradient of rounding errors alone, which Adam scales up to a whole step
# unless eps is above them.
optimizer = dataclasses.replace(tiny.OPTIMIZER, eps=1e-3)

def eight_rows(stage):
    # A batch is padded to a multiple of the devices, and how it packs depends on its rows: all have eight here.
    @dataclasses.dataclass(frozen=True)
    class EightRows(type(stage)):
        def rows(self, table, multiple_of):
            return 8
    return EightRows(**{**vars(stage), "batch_size": 8})

def interrupted(stage, step, numbers):
    if step == 3:
        raise InterruptedError

for name in tiny.STAGES:
    fields = dict(stage=eight_rows(tiny.STAGES[name]), optimizer=optimizer)
    run(setting, output / "one" / name, name, **fields)
    run(setting, output / "eight" / name, name, mesh=eight, **fields)

require_finite, loop._require_finite = loop._require_finite, interrupted
try:
    run(setting, output / "moved", "triplet", checkpoint_every_seconds=0.0, **fields)
except InterruptedError:
    loop._require_finite = require_finite
    run(setting, output / "moved", "triplet", mesh=eight, **fields)
"""


@pytest.fixture(scope="module")
def on_eight_devices(setting, tmp_path_factory):
    """Every stage on one device and on a mesh of eight, and one stage moved from the one to the other."""
    output = tmp_path_factory.mktemp("devices")
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # compiled in half the time
    finish(process(setting, output, EIGHT, XLA_FLAGS=flags))
    return output


def assert_close(one: pathlib.Path, two: pathlib.Path) -> None:
    losses = [[row["loss"] for row in numbers(folder)] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), load_params(one), load_params(two)
    )


@pytest.mark.parametrize("name", tiny.STAGES)
def test_eight_devices_compute_what_one_does(on_eight_devices, name):
    assert_close(on_eight_devices / "one" / name, on_eight_devices / "eight" / name)


def test_a_run_of_one_device_goes_on_with_eight(on_eight_devices):
    assert_close(on_eight_devices / "one" / "triplet", on_eight_devices / "moved")
    with pytest.raises(AssertionError):  # control
        assert_close(on_eight_devices / "one" / "pair", on_eight_devices / "moved")
