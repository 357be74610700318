"""Evaluation while a stage trains: what it computes, which checkpoint is the best, when it ends the stage."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.clock import CLOCK

from pplx_jax.checkpoints.saved_params import SELECTED, checkpoint_steps, load_params
from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import digest
from pplx_jax.models.parameters import bind
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training import train_stage
from pplx_jax.training import trainer as loop
from pplx_jax.training.evaluators import Best
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Evaluation
from pplx_jax.training.stages.base import Step
from pplx_jax.training.train_stage import FINISHED, train

pytestmark = pytest.mark.slow

STEPS, HELD_OUT = 6, 8
STILL = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=0.0)


class Interrupted(Exception):
    """Ends a run between two steps."""


class Stages:
    """Trains tiny stages on two sources of which no document is shared."""

    def __init__(self, folder: pathlib.Path):
        self.vocabulary = tiny.tiny_vocabulary(folder)
        self.config = tiny.tiny_config(self.vocabulary)
        self.tables = {name: self._sources(table) for name, table in tiny.tiny_tables(folder, self.vocabulary).items()}

    def _sources(self, table):
        if "document_hash" not in table:
            return {"first": [table], "second": [table]}
        if table.kind == "contextual":  # of the last four examples the first one has the document of those before it
            document = (np.arange(tiny.EXAMPLES) * tiny.DOCUMENTS // tiny.EXAMPLES).astype(np.int32)
            document[-4] = document[-5]
            columns = {"document": document, "document_hash": document, "chunk": np.zeros_like(document)}
            table = dataclasses.replace(table, features={**table.features, **columns})
        other = {**table.features, "document_hash": table["document_hash"] + 100}
        return {"first": [table], "second": [dataclasses.replace(table, features=other)]}

    def train(self, folder, name, *, evaluators=(), start_from=None, **fields):
        return train(
            folder,
            tiny.training(name, **{"steps": STEPS, **fields}),
            self.config,
            self.tables[name],
            self.vocabulary,
            mesh=Mesh(),
            seed=3,
            start_from=start_from,
            evaluators=evaluators,
        )


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("tiny"))


class Scripted:
    """An evaluator whose values are given in advance, one for each new state of the parameters."""

    metrics = ("eval/set/ndcg@10", "eval/loss/source")

    def __init__(self, values):
        self._values, self._by_parameters = list(values), {}

    def __call__(self, params):
        value = self._by_parameters.setdefault(digest(jax.device_get(params)), len(self._by_parameters))
        return {"eval/set/ndcg@10": self._values[value], "eval/loss/source": -self._values[value]}

    def __iter__(self):
        return iter([lambda config, devices: self])


def rows(folder):
    return [{name: row[name] for name in row if name not in CLOCK} for row in read_metrics(folder / "metrics.jsonl")]


def evaluated(folder, name):
    return {row["step"]: row[name] for row in rows(folder) if name in row}


def interrupt(patched, step):
    require_finite = loop._require_finite

    def require(stage, at, numbers):
        if at == step:
            raise Interrupted
        require_finite(stage, at, numbers)

    patched.setattr(loop, "_require_finite", require)


# --- What it computes


@pytest.mark.parametrize("name", tiny.STAGES)
def test_held_out_loss_is_that_of_the_stage_on_rows_it_never_reads(stages, tmp_path, monkeypatch, name):
    read = []

    class Recorded(train_stage.HostBatches):
        def __next__(self):
            batch = super().__next__()
            read.extend(batch.rows.tolist())
            return batch

    monkeypatch.setattr(train_stage, "HostBatches", Recorded)
    count = tiny.STAGES[name].batch.batch_size
    evaluation = Evaluation(every_steps=2, held_out=count)
    stages.train(tmp_path / "run", name, evaluation=evaluation, steps=12, optimizer=STILL)
    trained_on = tiny.EXAMPLES - count
    assert set(read) == set(range(trained_on))  # 12 batches are more than one pass
    # A learning rate of zero changes nothing, so every evaluation must give the same bits.
    values = evaluated(tmp_path / "run", "eval/loss/second")
    assert list(values) == [2, 4, 6, 8, 10, 12] and len(set(values.values())) == 1
    stage, table = tiny.STAGES[name], stages.tables[name]["second"][0]
    packed = stage.batch.pack(table, np.arange(trained_on, tiny.EXAMPLES), 2 * count).arrays
    if name == "contextual":  # the document of the first one is also trained on
        packed["weight"] = np.array([0, 1, 1, 1], np.float32)
    model = bind(stages.config, load_params(tmp_path / "run"))
    if name != "diffusion":
        step = Step(jax.random.key(0), jnp.float32(1), stages.vocabulary.mask_id)
        np.testing.assert_allclose(values[2], stage.loss(model, packed, step)[0], rtol=1e-5)
    else:  # equal texts, other masks
        assert values[2] != evaluated(tmp_path / "run", "eval/loss/first")[2]
    first, second, mean = (evaluated(tmp_path / "run", f"eval/loss/{of}")[2] for of in ("first", "second", "mean"))
    assert mean == pytest.approx((first + second) / 2)


# --- The best checkpoint, and the end of a stage


def test_the_best_checkpoint_is_kept_beside_the_latest_and_is_the_model_if_asked(stages, tmp_path):
    fields = {"keep_checkpoints": 1, "best_metric": "eval/set/ndcg@10", "evaluation": Evaluation(1), "steps": 6}
    values = [0.1, 0.5, 0.3, 0.5, 0.4, 0.2]
    for folder, use_best in (("latest", False), ("best", True)):
        summary = stages.train(tmp_path / folder, "pair", evaluators=Scripted(values), use_best=use_best, **fields)
        assert summary["best"] == {"metric": "eval/set/ndcg@10", "value": 0.5, "step": 2}  # the earlier of two equal
        assert summary["steps"] == 6 and "ended_early" not in summary
        assert checkpoint_steps(tmp_path / folder) == [2, 6]
    of_step = {step: load_params(tmp_path / "best", step) for step in (2, 6)}
    assert same(load_params(tmp_path / "latest"), of_step[6]) and same(load_params(tmp_path / "best"), of_step[2])
    assert not same(of_step[2], of_step[6])
    # A loss is best when it is low. It is the negative here, so the same steps are the best.
    fields |= {"best_metric": "eval/loss/source", "keep_best": 2}
    summary = stages.train(tmp_path / "loss", "pair", evaluators=Scripted(values), **fields)
    assert summary["best"] == {"metric": "eval/loss/source", "value": -0.5, "step": 2}
    assert checkpoint_steps(tmp_path / "loss") == [2, 4, 6]


def test_a_later_stage_starts_from_the_best_checkpoint(stages, tmp_path):
    fields = {"best_metric": "eval/set/ndcg@10", "evaluation": Evaluation(1), "use_best": True, "steps": 3}
    stages.train(tmp_path / "diffusion", "diffusion", evaluators=Scripted([0.1, 0.5, 0.3]), **fields)
    stages.train(tmp_path / "pair", "pair", start_from=tmp_path / "diffusion", optimizer=STILL, steps=1)
    assert same(load_params(tmp_path / "pair"), load_params(tmp_path / "diffusion", 2))


def test_a_stage_ends_when_its_metric_no_longer_improves_and_resumes_alike(stages, tmp_path, monkeypatch):
    fields = {
        "best_metric": "eval/set/ndcg@10",
        "evaluation": Evaluation(every_steps=2, patience=2),
        "steps": 20,
        "checkpoint_every_steps": 3,
    }
    values = [0.1, 0.4, 0.3, 0.4, 0.9]  # of the steps 2, 4, ...: equal is no improvement
    whole = stages.train(tmp_path / "whole", "pair", evaluators=Scripted(values), **fields)
    assert whole["steps"] == 8 and checkpoint_steps(tmp_path / "whole") == [4, 6, 8]
    assert whole["ended_early"] == "eval/set/ndcg@10 did not improve in 2 evaluations"
    finished = json.loads((tmp_path / "whole" / FINISHED).read_text())
    assert (finished["steps"], finished["ended_early"]) == (8, whole["ended_early"])
    assert finished["best"] == {"metric": "eval/set/ndcg@10", "value": 0.4, "step": 4}
    folder, scripted = tmp_path / "resumed", Scripted(values)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 8)
        stages.train(folder, "pair", evaluators=scripted, **fields)
    assert checkpoint_steps(folder) == [4, 6]
    assert stages.train(folder, "pair", evaluators=scripted, **fields)["best"] == whole["best"]
    assert rows(folder) == rows(tmp_path / "whole")
    assert same(load_params(folder), load_params(tmp_path / "whole"))
    # After a kill between the last checkpoint and finished.json there is no step left to do.
    (tmp_path / "whole" / FINISHED).unlink()
    again = stages.train(tmp_path / "whole", "pair", evaluators=Scripted(values), **fields)
    assert {**again, "seconds": 0, "compile_seconds": 0} == {**whole, "seconds": 0, "compile_seconds": 0}


def test_nan_is_the_worst_value():
    best = Best("eval/loss/mean")
    for step, value in ((1, math.nan), (2, 3.0), (3, math.nan), (4, 2.0)):
        best = best.with_value(value, step, keep=2)
    assert best.top == ((2.0, 4), (3.0, 2)) and best.since == 0


def test_a_metric_that_is_named_after_the_last_evaluation_chooses_nothing(stages, tmp_path):
    stages.train(tmp_path / "run", "pair", steps=2)
    (tmp_path / "run" / FINISHED).unlink()  # as after a kill
    fields = {"best_metric": "eval/set/ndcg@10", "use_best": True, "evaluation": Evaluation(1), "steps": 2}
    assert "best" not in stages.train(tmp_path / "run", "pair", evaluators=Scripted([]), **fields)
    assert not (tmp_path / "run" / SELECTED).exists() and load_params(tmp_path / "run")


# --- What it leaves as it was


@pytest.mark.parametrize("name", ["diffusion", "contextual"])
def test_evaluation_changes_no_number_of_the_training(stages, tmp_path, name):
    stages.train(tmp_path / "without", name)
    stages.train(tmp_path / "with", name, evaluators=Scripted([0.1] * STEPS), evaluation=Evaluation(2))
    assert all("eval/set/ndcg@10" in row for row in rows(tmp_path / "with") if row["step"] % 2 == 0)
    trained = [{name: row[name] for name in row if "eval/" not in name} for row in rows(tmp_path / "with")]
    assert trained == rows(tmp_path / "without")
    assert same(load_params(tmp_path / "with"), load_params(tmp_path / "without"))


def test_an_evaluated_step_is_logged_and_its_seconds_are_counted(stages, tmp_path):
    fields = {"evaluators": Scripted([0.1, 0.2]), "evaluation": Evaluation(4), "log_every_steps": 5}
    stages.train(tmp_path / "run", "pair", **fields)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 4, 5, 6]
    assert evaluated(tmp_path / "run", "eval/set/ndcg@10") == {4: 0.1, 6: 0.2}
    assert json.loads((tmp_path / "run" / "goodput.json").read_text())["seconds"]["evaluation"] > 0


# --- What is refused, before anything is written


@pytest.mark.parametrize(
    "evaluation, fields, said",
    [
        (Evaluation(1), {"best_metric": "eval/set/ndgc@10"}, "no evaluation of the stage pair has it; did you mean"),
        (Evaluation(1, held_out=8), {"best_metric": "recall"}, "has it; it has eval/set/ndcg@10, .*, eval/loss/second"),
        (Evaluation(1, held_out=12), {}, "held_out=12 makes no equal batches of 8 examples for 1 devices; set it to a"),
        (
            Evaluation(1, held_out=16),
            {"best_metric": "eval/loss/mean"},
            "best_metric=.eval/loss/mean.: no evaluation of the stage pair has it",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused(stages, tmp_path, evaluation, fields, said):
    with pytest.raises(BadInput, match=said):
        stages.train(tmp_path / "run", "pair", evaluators=Scripted([]), evaluation=evaluation, **fields)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_of_nothing_is_refused(stages, tmp_path, caplog):
    with pytest.raises(BadInput, match="pair: Training.evaluation has nothing to compute; set"):
        stages.train(tmp_path / "run", "pair", evaluation=Evaluation(1))
    both = stages.tables["pair"]["first"] * 2
    with pytest.raises(BadInput, match="pair: Training.evaluation has nothing to compute"):
        train(
            tmp_path / "run",
            tiny.training("pair", evaluation=Evaluation(1, held_out=8)),
            stages.config,
            {"first": both[:1], "second": both[1:] * 2},
            stages.vocabulary,
            mesh=Mesh(),
            seed=3,
        )
    assert "second: no held-out loss, because the documents of all held-out examples are trained on" in caplog.text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"evaluation": Evaluation(1, patience=1)}, "Evaluation.patience needs Checkpointing.best_metric"),
        (
            {"best_metric": "eval/mean/ndcg@10"},
            "Checkpointing.best_metric='eval/mean/ndcg@10' needs Training.evaluation",
        ),
        ({"use_best": True}, "Checkpointing.use_best needs Checkpointing.best_metric"),
    ],
)
def test_settings_that_miss_another_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        tiny.training("pair", **fields)


def test_a_run_with_other_held_out_examples_is_refused(stages, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt(patched, 3)
        stages.train(tmp_path / "run", "pair", checkpoint_every_steps=1)
    with pytest.raises(BadInput, match="examples 48, this recipe has 32"):
        stages.train(tmp_path / "run", "pair", evaluation=Evaluation(2, held_out=8))
    # Everything else about evaluation may change.
    stages.train(tmp_path / "run", "pair", evaluators=Scripted([0.1] * 3), evaluation=Evaluation(2))
    assert list(evaluated(tmp_path / "run", "eval/set/ndcg@10")) == [4, 6]
    with pytest.raises(
        BadInput, match="the finished stage has other settings: Evaluation.held_out 0, this recipe has 8"
    ):
        stages.train(tmp_path / "run", "pair", evaluation=Evaluation(2, held_out=8))


def same(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
