"""The training loop on the tiny model: every stage, files after a kill, which inputs are refused and when."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest
from helpers import job, tiny
from helpers.clock import CLOCK
from jax.sharding import AbstractMesh

from pplx_jax.checkpoints.model_folder import load_config
from pplx_jax.checkpoints.orbax import Checkpoints
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.errors import BadInput, Preempted
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.rules import MESH_AXES
from pplx_jax.training import train_stage
from pplx_jax.training import trainer as loop
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Training
from pplx_jax.training.train_stage import FINISHED, train
from pplx_jax.training.train_state import state_layout
from pplx_jax.training.trainer import NonFiniteLoss

pytestmark = pytest.mark.slow

STEPS = 4
ONE = Mesh()
CONFIG_TEXT = "Training.steps = 4  # naïve\n"
STILL = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=0.0)
# Numbers of the machine, not of the run.


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the runs of this file share."""

    folder: pathlib.Path
    vocabulary: object
    config: Qwen3Config
    tables: dict[str, TokenTable]

    def training(self, name: str, **fields) -> Training:
        return tiny.training(name, **{"steps": STEPS, **fields})

    def train(
        self, folder, name: str, *, seed: int = 3, mesh: Mesh = ONE, start_from=None, config=None, clock=None, **fields
    ):
        return train(
            folder,
            self.training(name, **fields),
            config or self.config,
            self.tables[name],
            self.vocabulary,
            mesh=mesh,
            seed=seed,
            start_from=start_from,
            config_text=CONFIG_TEXT,
            **({"clock": clock} if clock else {}),
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = tiny.tiny_vocabulary(folder)
    tables = tiny.tiny_tables(folder, vocabulary)
    return Setting(folder, vocabulary, tiny.tiny_config(vocabulary), tables)


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
    assert finished.keys() == {
        *("stage", "starts_from", "summary", "reads", "steps", "seconds", "compile_seconds", "metrics", "computes")
    }
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


def test_chosen_steps_are_profiled(setting, tmp_path):
    setting.train(tmp_path / "run", "diffusion", profile_steps=(2, 3))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_what_is_logged_is_watched(whole):
    rows = read_metrics(whole["diffusion"] / "metrics.jsonl")
    watched = {"parameter_norm", "update_norm", "checkpoint_seconds", "host_memory_bytes", "goodput", "restarts"}
    assert all(watched <= row.keys() and CLOCK <= row.keys() for row in rows)
    assert "model_flops_utilization" not in rows[0]  # nobody knows the peak of this CPU
    assert all(row["restarts"] == 0 and 0 <= row["goodput"] <= 1 and row["host_memory_bytes"] > 1e7 for row in rows)
    kept = json.loads((whole["diffusion"] / "goodput.json").read_text())
    assert kept["starts"] == 1 and kept["seconds"]["compile"] > 0
    spent = kept["useful_seconds"] + sum(kept["seconds"].values())
    assert spent == pytest.approx(kept["wall_seconds"], abs=0.01)


def test_a_finished_stage_is_not_trained_again(setting, whole, monkeypatch):
    folder = whole["diffusion"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(train_stage, "make_step", None)  # calling it would fail
    summary = setting.train(folder, "diffusion")
    finished = json.loads((folder / FINISHED).read_text())
    assert {**summary, "computes": finished["computes"]} == finished and "computes" not in summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- What an interruption leaves


# Before the first checkpoint a stage starts anew, whichever it is.
@pytest.mark.parametrize("stage, step", [("diffusion", 1), *((stage, 3) for stage in tiny.STAGES)])
def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(setting, whole, tmp_path, monkeypatch, stage, step):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, step)
        setting.train(tmp_path / stage, stage, checkpoint_every_steps=1)
    assert not (tmp_path / stage / FINISHED).exists()
    summary = setting.train(tmp_path / stage, stage, checkpoint_every_steps=1)
    assert numbers(tmp_path / stage) == numbers(whole[stage])
    assert_same_params(tmp_path / stage, whole[stage])
    assert summary["metrics"]["loss"] == numbers(whole[stage])[-1]["loss"]


def test_steps_past_the_checkpoint_come_again_once(setting, whole, tmp_path, monkeypatch):
    saved = []
    save = train_stage.Checkpoints.save

    def only_step_one(self, step, *content):
        if step in (1, STEPS):
            saved.append(step)
            save(self, step, *content)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(train_stage.Checkpoints, "save", only_step_one)
        interrupt(patched, 4)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_steps=1)
    assert saved == [1]
    assert [row["step"] for row in numbers(tmp_path / "run")] == [1, 2, 3]
    setting.train(tmp_path / "run", "diffusion")
    assert numbers(tmp_path / "run") == numbers(whole["diffusion"])
    assert_same_params(tmp_path / "run", whole["diffusion"])


def test_a_resumed_run_that_logs_rarely_logs_the_same_steps(setting, tmp_path, monkeypatch):
    fields = {"steps": 7, "log_every_steps": 3}
    setting.train(tmp_path / "whole", "diffusion", **fields)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 5)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_steps=1, **fields)
    setting.train(tmp_path / "run", "diffusion", **fields)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_a_kill_between_the_last_checkpoint_and_the_marker_keeps_the_metrics(setting, whole, tmp_path, monkeypatch):
    def full(*_):
        raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(train_stage, "write_json", full)
        setting.train(tmp_path / "run", "diffusion")
    summary = setting.train(tmp_path / "run", "diffusion")
    assert summary["metrics"]["loss"] == numbers(whole["diffusion"])[-1]["loss"]
    assert numbers(tmp_path / "run") == numbers(whole["diffusion"])


def test_a_resumed_stage_needs_its_earlier_stage_no_more(setting, whole, tmp_path, monkeypatch):
    setting.train(tmp_path / "whole", "pair", start_from=whole["diffusion"])
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        setting.train(tmp_path / "run", "pair", start_from=whole["diffusion"], checkpoint_every_steps=1)
    setting.train(tmp_path / "run", "pair", start_from=tmp_path / "gone")
    assert_same_params(tmp_path / "run", tmp_path / "whole")


def test_a_notice_of_preemption_saves_and_stops(setting, whole, tmp_path, monkeypatch):
    require_finite = loop._require_finite

    def notice(stage, step, values):
        require_finite(stage, step, values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with (
        monkeypatch.context() as patched,
        pytest.raises(Preempted, match="pair: asked to stop at step 3, which is saved"),
    ):
        patched.setattr(loop, "_require_finite", notice)
        setting.train(tmp_path / "run", "pair")
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    setting.train(tmp_path / "run", "pair")
    assert numbers(tmp_path / "run") == numbers(whole["pair"])
    assert_same_params(tmp_path / "run", whole["pair"])


@pytest.mark.parametrize("asked", ["here", "elsewhere"])
def test_a_notice_at_the_last_step_stops_behind_the_finished_stage(setting, whole, tmp_path, monkeypatch, asked):
    require_finite = loop._require_finite

    def notice(stage, step, values):
        require_finite(stage, step, values)
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Preempted, match="pair: asked to stop at its end") as stop:
        if asked == "here":
            patched.setattr(loop, "_require_finite", notice)
        else:
            patched.setattr(loop, "over_processes", lambda numbers: {name: np.array([0, 1]) for name in numbers})
        setting.train(tmp_path / "run", "pair")
    assert stop.value.together
    assert_same_params(tmp_path / "run", whole["pair"])
    assert setting.train(tmp_path / "run", "pair")["steps"] == STEPS  # finished, so that what comes after it goes on


def test_a_checkpoint_is_all_there_is_to_know(setting, whole):
    optimizer = tiny.OPTIMIZER.build(STEPS)
    layout = state_layout(setting.config, tiny.STAGES["pair"], optimizer, ONE.build())
    with contextlib.closing(Checkpoints(whole["pair"])) as checkpoints:
        step, state, about = checkpoints.restore_latest(layout.arrays())
    assert step == STEPS == state["step"] and state.keys() == {"params", "optimizer", "step"}
    assert about.pop("seconds") > about.pop("useful_seconds") > 0
    computes, tables = about.pop("computes"), about.pop("tables")
    assert re.fullmatch("[0-9a-f]{16}", tables)
    assert (computes["PairStage.temperature"], computes["Training.steps"], computes["seed"]) == (0.02, STEPS, 3)
    assert computes["Qwen3Config.width"] == tiny.WIDTH and "Training.log_every_steps" not in computes
    assert about == {
        "stage": "pair",
        "position": STEPS * 8,
        "skipped": 0,
        "seed": 3,
        "examples": tiny.EXAMPLES,
        "batch_size": 8,
        "data": repr(Mixture()),
        "processes": 1,
        "mesh": dict.fromkeys(MESH_AXES, 1),
        "config": CONFIG_TEXT,
    }


def test_a_damaged_checkpoint_costs_its_steps_alone(setting, whole, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 4)
        setting.train(tmp_path / "run", "triplet", checkpoint_every_steps=1)
    for file in (tmp_path / "run" / "checkpoints" / "3" / "default").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    setting.train(tmp_path / "run", "triplet")
    assert "checkpoints/3 is damaged" in caplog.text and "resuming from step 2" in caplog.text
    assert numbers(tmp_path / "run") == numbers(whole["triplet"])
    assert_same_params(tmp_path / "run", whole["triplet"])


def test_checkpoints_are_due_by_the_clock_and_by_step(setting, tmp_path):
    def saved(folder, seconds_a_look, **fields):
        ticks = itertools.count(0.0, seconds_a_look)
        setting.train(folder, "diffusion", steps=7, keep_checkpoints=9, clock=lambda: next(ticks), **fields)
        return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())

    # The clock is read once a step and once after each save: 0 at the start, then more than 25 s after it at 30.
    assert saved(tmp_path / "time", 10.0, checkpoint_every_seconds=25.0) == [3, 6, 7]
    assert saved(tmp_path / "steps", 0.0, checkpoint_every_seconds=25.0, checkpoint_every_steps=2) == [2, 4, 6, 7]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 4}, "seed 3, this recipe has 4"),
        ({}, "examples 24, this recipe"),
        ({"data": Mixture({"": 2.0})}, r'data "Mixture\(weights=\{\}.* this recipe has "Mixture\(weights=\{.*: 2.0\}'),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(setting, tmp_path, monkeypatch, change, said):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 2)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_steps=1)
    if not change:
        monkeypatch.setitem(setting.tables, "diffusion", LongerTable(**vars(setting.tables["diffusion"])))
    with pytest.raises(BadInput, match=said):
        setting.train(tmp_path / "run", "diffusion", **change)


def test_a_checkpoint_that_other_settings_computed_is_refused(setting, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        setting.train(tmp_path / "run", "pair", checkpoint_every_steps=1)
    hotter = dataclasses.replace(tiny.STAGES["pair"], temperature=0.5, row_length=16)
    faster = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=0.5)
    changes = [
        ({"stage": hotter}, r"PairStage.row_length 32, this recipe has 16; PairStage.temperature 0.02, this .* 0.5. "),
        ({"optimizer": faster}, "Optimizer.peak_learning_rate 0.01, this recipe has 0.5. Set them back"),
        ({"packing_groups": 4}, "Training.packing_groups 1, this recipe has 4. Set them back"),
        ({"steps": 8}, "Training.steps 4, this recipe has 8. Set them back, or choose a new --workdir"),
        ({"config": dataclasses.replace(setting.config, rope_theta=1e4)}, "Qwen3Config.rope_theta 1000000.0, this"),
    ]
    for change, said in changes:
        with pytest.raises(BadInput, match=f"run: the checkpoint of step 2 has other settings: {said}"):
            setting.train(tmp_path / "run", "pair", **change)
        with pytest.raises(BadInput, match=f"pair: the finished stage has other settings: {said}"):
            setting.train(whole["pair"], "pair", **change)
    with pytest.raises(
        BadInput, match="pair: the finished stage has other settings: seed 3, this recipe has 4. Set them back"
    ):
        setting.train(whole["pair"], "pair", seed=4)
    setting.train(tmp_path / "run", "pair", log_every_steps=2, keep_checkpoints=1)
    assert_same_params(tmp_path / "run", whole["pair"])


def test_a_checkpoint_that_does_not_say_what_it_computes_goes_on(setting, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        patched.setattr(train_stage, "settings_of", lambda *_, **__: {})
        setting.train(tmp_path / "run", "pair", checkpoint_every_steps=1)
    setting.train(tmp_path / "run", "pair")
    assert_same_params(tmp_path / "run", whole["pair"])


@dataclasses.dataclass(frozen=True)
class LongerTable(TokenTable):
    """One that somebody has tokenised again."""

    @property
    def count(self):
        return 23


# A run that waits at its sixth step for the kill, should that be late.
WAITING = """
require_finite = loop._require_finite

def require(stage, step, numbers):
    while step == 6:
        time.sleep(1)
    require_finite(stage, step, numbers)

loop._require_finite = require
"""


def test_a_process_killed_outright_resumes_to_the_same_bits(setting, tmp_path):
    fields = {"steps": 7, "checkpoint_every_steps": 1}
    folder = tmp_path / "killed"
    victim = job.start(WAITING + f"run(setting, output, 'diffusion', **{fields})", setting.folder, folder)
    deadline = time.monotonic() + 300
    while len(read_metrics(folder / "metrics.jsonl")) < 3:
        assert victim.poll() is None, victim.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (folder / FINISHED).exists()
    assert len(read_metrics(folder / "metrics.jsonl")) < 6
    setting.train(folder, "diffusion", **fields)
    setting.train(tmp_path / "whole", "diffusion", **fields)
    assert [row["step"] for row in numbers(folder)] == list(range(1, 8))
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert_same_params(folder, tmp_path / "whole")


# --- What is refused


def test_a_loss_that_is_not_finite_stops_the_stage_before_a_save(setting, tmp_path, monkeypatch):
    # Broken and sound are one program but for a number, so that their first steps have the same bits.
    class Breaking(type(tiny.STAGES["diffusion"])):
        sound_until = 0.5  # before step 3 of 4

        def loss(self, model, batch, step):
            loss, metrics = super().loss(model, batch, step)
            return jax.numpy.where(step.progress >= self.sound_until, jax.numpy.nan, loss), metrics

    stage = Breaking(**vars(tiny.STAGES["diffusion"]))
    # The loss itself breaks, in this file; what goes into it is sound.
    found = r"diffusion step 3: loss is nan.*; first array that is not finite: the metric loss \(1 of 1 values\)"
    with pytest.raises(NonFiniteLoss, match=found):
        setting.train(tmp_path / "run", "diffusion", stage=stage, checkpoint_every_steps=1)
    assert [row["step"] for row in numbers(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "run" / FINISHED).exists()
    # Logged only at both ends, it is still seen before the checkpoint of step 3 would be written.
    with pytest.raises(NonFiniteLoss, match="diffusion step 3: loss is nan"):
        setting.train(tmp_path / "rare", "diffusion", stage=stage, log_every_steps=9, checkpoint_every_steps=1)
    assert {path.name for path in (tmp_path / "rare" / "checkpoints").iterdir()} == {"1", "2"}
    # The fixed stage resumes from the checkpoint before it.
    monkeypatch.setattr(Breaking, "sound_until", 2.0)
    for folder in ("run", "sound"):
        setting.train(tmp_path / folder, "diffusion", stage=stage)
    assert_same_params(tmp_path / "run", tmp_path / "sound")


def test_the_first_step_that_is_not_finite_is_named_also_if_logs_are_rare(setting, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Breaking(type(tiny.STAGES["diffusion"])):
        def loss(self, model, batch, step):
            loss, metrics = super().loss(model, batch, step)
            return loss + jax.numpy.log(3.5 - 8 * step.progress), metrics  # below 0 from step 5 of 8

    stage = Breaking(**vars(tiny.STAGES["diffusion"]))
    where = r"the result of `log` in loss \(\S*test_trainer\.py:\d+\)"
    with pytest.raises(NonFiniteLoss, match=f"diffusion step 5: loss is nan.*first array that is not finite: {where}"):
        setting.train(tmp_path / "run", "diffusion", stage=stage, steps=8, log_every_steps=9)


def test_a_mesh_larger_than_the_devices_is_refused_before_anything_is_written(setting, tmp_path):
    with pytest.raises(BadInput, match="needs 64 devices.*lower Mesh.data"):
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
    with pytest.raises(BadInput, match=r"diffusion is of another model: layers\.mlp\.down\.kernel is \(1, 16, 16\)"):
        setting.train(tmp_path / "run", "pair", start_from=whole["diffusion"], config=wider)
    assert not (tmp_path / "run" / "model.json").exists()


def test_a_checkpoint_of_another_model_is_refused_and_its_folder_left_as_it_was(setting, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        setting.train(tmp_path / "run", "diffusion", checkpoint_every_steps=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(BadInput, match=f"{tmp_path / 'run'}/checkpoints/2 is of another model: "):
        setting.train(tmp_path / "run", "diffusion", config=tiny.tiny_config(setting.vocabulary, mlp_width=24))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "field, name",
    [
        ("steps", "Training.steps"),
        ("log_every_steps", "Logging.every_steps"),
        ("keep_checkpoints", "Checkpointing.keep"),
    ],
)
def test_counts_below_one_are_refused_by_name(setting, field, name):
    with pytest.raises(BadInput, match=f"{name}=0"):
        setting.training("pair", **{field: 0})


# --- Without TensorFlow, and on many devices


def test_training_from_token_files_needs_no_tensorflow(setting, whole, tmp_path):
    writers = "from pplx_jax.training.metrics_writers import TensorBoard\n"
    code = writers + "run(setting, output, 'pair', writers=[TensorBoard()])"
    job.finish([job.start(code, setting.folder, tmp_path / "run")])
    assert numbers(tmp_path / "run") == numbers(whole["pair"])
    assert not (tmp_path / "run" / "tensorboard").exists()


# Two stages on one device, and one of them taken to a larger mesh by each step.
GROWING = """
import jax
assert len(jax.devices()) == 8
def run_until(last, *arguments, **keywords):
    def interrupted(stage, step, numbers):
        if step > last:
            raise InterruptedError
    require_finite, loop._require_finite = loop._require_finite, interrupted
    try:
        run(*arguments, checkpoint_every_steps=1, **keywords)
    except InterruptedError:
        pass
    loop._require_finite = require_finite

for name in ("pair", "triplet"):
    fields = dict(stage=tiny.with_sequences(tiny.STAGES[name], 8), optimizer=tiny.ROBUST_OPTIMIZER)
    run(setting, output / name, name, **fields)

run_until(1, setting, output / "moved", "triplet", **fields)
run_until(2, setting, output / "moved", "triplet", mesh=Mesh(fsdp=2), **fields)
run_until(3, setting, output / "moved", "triplet", mesh=Mesh(data=2, fsdp=2), **fields)
run(setting, output / "moved", "triplet", mesh=Mesh(data=2, fsdp=4), **fields)
"""


def assert_close(one: pathlib.Path, two: pathlib.Path) -> None:
    losses = [[row["loss"] for row in numbers(folder)] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), load_params(one), load_params(two)
    )


def test_a_run_of_one_device_goes_on_with_two_then_four_then_eight(setting, tmp_path):
    job.finish([job.start(GROWING, setting.folder, tmp_path, devices=8)])
    assert_close(tmp_path / "triplet", tmp_path / "moved")
    with pytest.raises(AssertionError):  # control
        assert_close(tmp_path / "pair", tmp_path / "moved")
