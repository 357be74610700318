"""`eval --watch`: each checkpoint once, in the order of steps, while a training writes and deletes them."""

import json
import shutil
import types

import numpy as np
import pytest
from helpers.tiny import tiny_config, tiny_vocabulary
from helpers.word_encoder import WordEncoder

from pplx_jax.checkpoints.model_folder import describe_model
from pplx_jax.checkpoints.orbax import CHECKPOINTS
from pplx_jax.checkpoints.saved_params import save_params
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.evaluation import watch
from pplx_jax.models.parameters import initial_params
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.train_stage import FINISHED

WORDS = "ant bee cat dog eel fox gnu hen ibis jay".split()


class Training:
    """Stands for a training on another machine: each look of the watcher is followed by the next of its actions."""

    def __init__(self, stage, *actions):
        self.stage, self._actions = stage, list(actions)

    def __call__(self, seconds: float) -> None:
        assert seconds == 5.0
        self._actions.pop(0)()

    def saves(self, *steps):
        for step in steps:
            folder = self.stage / CHECKPOINTS / str(step)
            folder.mkdir(parents=True)
            (folder / "weights").touch()

    def deletes(self, step):
        shutil.rmtree(self.stage / CHECKPOINTS / str(step))

    def finishes(self):
        (self.stage / FINISHED).write_text("{}")


@pytest.fixture
def scored(monkeypatch):
    """The steps that were scored, in order; a checkpoint is read if its weights are there."""
    steps = []
    steps_of_events = types.SimpleNamespace(write=lambda step, numbers: None, close=lambda: None)

    def load(path):
        if not (path / "weights").exists():
            raise BadInput(f"checkpoint {path} is damaged")
        return WordEncoder(dims=int(path.name), fingerprint=path.name)

    monkeypatch.setattr(watch, "load_encoder", load)
    monkeypatch.setattr(watch.TensorBoard, "open", lambda self, stage: steps_of_events)  # it imports TensorFlow
    return steps


def run(stage, output, scored, sleep, **settings):
    def score(model, results):
        scored.append(model.dims)
        tasks = [
            {"task": "one", "metrics": {"ndcg@10": model.dims / 100, "recall@100": 0.5, "map": 0.1}},
            {"task": "two", "metrics": {"ndcg@10": 0.3, "recall@100": 0.7}},
        ]
        return {"settings": [{"setting": "int8", "tasks": tasks}, {"setting": "int8-context", "tasks": tasks[:1]}]}

    return watch.watch_stage(stage, output, score, settings, poll_seconds=5.0, sleep=sleep)


def test_checkpoints_are_scored_once_as_they_appear_until_the_stage_is_finished(tmp_path, scored):
    training = Training(tmp_path / "pair")
    training._actions = [
        lambda: training.saves(10, 30, 20),
        lambda: (training.deletes(10), training.saves(40)),
        lambda: (training.saves(50), training.finishes()),
    ]
    found = run(training.stage, tmp_path / "scores", scored, training)
    assert scored == [10, 20, 30, 40, 50] == found["steps"] and found["skipped"] == []
    rows = read_metrics(tmp_path / "scores" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    assert rows[1] == {
        "step": 20,
        "eval/one/ndcg@10": 0.2,
        "eval/one/recall@100": 0.5,
        "eval/one/map": 0.1,
        "eval/two/ndcg@10": 0.3,
        "eval/two/recall@100": 0.7,
        "eval/mean/ndcg@10": 0.25,
        "eval/mean/recall@100": 0.6,
        "eval/one/with_context/ndcg@10": 0.2,
        "eval/one/with_context/recall@100": 0.5,
        "eval/one/with_context/map": 0.1,
        "eval/mean/with_context/ndcg@10": 0.2,
        "eval/mean/with_context/recall@100": 0.5,
        "eval/mean/with_context/map": 0.1,
    }
    assert found["metrics"]["eval/one/ndcg@10"] == 0.5 and "eval/mean/ndcg@10" in found["table"]


def test_a_later_call_continues_where_an_earlier_one_was_killed(tmp_path, scored):
    class Killed(Exception):
        pass

    def kill():
        raise Killed

    training = Training(tmp_path / "pair")
    training.saves(10, 20)
    training._actions = [kill]
    with pytest.raises(Killed):
        run(training.stage, tmp_path / "scores", scored, training)
    with (tmp_path / "scores" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 30, "eval/')  # a line cut short by the kill
    training.saves(30)
    training.finishes()
    assert run(training.stage, tmp_path / "scores", scored, training)["steps"] == [10, 20, 30] == scored
    assert run(training.stage, tmp_path / "scores", scored, training)["steps"] == [10, 20, 30] == scored  # nothing left


def test_a_checkpoint_that_is_deleted_before_it_is_read_is_skipped(tmp_path, scored):
    training = Training(tmp_path / "pair")
    training.saves(10, 20)
    weights = training.stage / CHECKPOINTS / "10" / "weights"
    weights.unlink()  # half deleted
    training._actions = [lambda: (training.deletes(10), training.finishes())]
    assert run(training.stage, tmp_path / "scores", scored, training)["skipped"] == [10]
    assert scored == [20]
    # One that nobody deletes is damaged.
    damaged = Training(tmp_path / "triplet", lambda: None)
    damaged.saves(10)
    (damaged.stage / CHECKPOINTS / "10" / "weights").unlink()
    with pytest.raises(BadInput, match="10 is damaged"):
        run(damaged.stage, tmp_path / "others", scored, damaged)


def test_another_stage_other_settings_and_a_missing_workdir_are_refused(tmp_path, scored):
    training = Training(tmp_path / "pair")
    training.saves(10)
    training.finishes()
    run(training.stage, tmp_path / "scores", scored, training, dims=[8, 16])
    run(training.stage, tmp_path / "scores", scored, training, dims=(8, 16))
    with pytest.raises(BadInput, match=r"scores holds other scores: dims \[8, 16\], not None; give another --output"):
        run(training.stage, tmp_path / "scores", scored, training, dims=None)
    with pytest.raises(BadInput, match=r"holds other scores: stage '.*pair', not '.*triplet'"):
        run(tmp_path / "triplet", tmp_path / "scores", scored, training, dims=[8, 16])
    with pytest.raises(BadInput, match="pair holds something else; give --watch an --output of its own"):
        run(training.stage, training.stage, scored, training)
    with pytest.raises(BadInput, match="nowhere does not exist; give the folder of a stage in its workdir"):
        run(tmp_path / "nowhere" / "pair", tmp_path / "more", scored, training)
    assert not (tmp_path / "more").exists()


@pytest.fixture
def beir(tmp_path):
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(WORDS, 4)) for _ in range(12)]
    ids = [f"d{number}" for number in range(12)]
    queries = [f"q{number}" for number in range(5)]
    data = RetrievalSet(
        document_ids=ids,
        documents=documents,
        parents=ids,
        chunks=[0] * 12,
        query_ids=queries,
        queries=documents[:5],
        qrels={query: {ids[-1 - place]: 1} for place, query in enumerate(queries)},
    )
    write_beir(tmp_path / "questions", data)
    return tmp_path / "questions"


@pytest.mark.slow
def test_the_verb_scores_a_stage_as_it_scores_its_checkpoints(tmp_path, beir, capsys):
    stage, vocabulary = tmp_path / "run" / "pair", tiny_vocabulary(tmp_path)
    config = tiny_config(vocabulary)
    stage.mkdir(parents=True)
    describe_model(stage, config, vocabulary, stage="pair")
    for step in (2, 4):
        save_params(stage, step, initial_params(config, seed=step))
    (stage / FINISHED).write_text("{}")

    def call(*arguments):
        code = cli.main(["eval", f"--task={beir}", *arguments, "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    output = tmp_path / "scores"
    code, found, _ = call(f"--watch={stage}", f"--output={output}")
    assert code == 0 and found["steps"] == [2, 4]
    rows = read_metrics(output / "metrics.jsonl")
    for row in rows:
        _, of_step, _ = call(f"--model={stage / CHECKPOINTS / str(row['step'])}")
        assert row["eval/questions/ndcg@10"] == of_step["metrics"]["ndcg@10"] == row["eval/mean/ndcg@10"]
        assert (output / str(row["step"]) / "results.json").exists()
    assert rows[0]["eval/questions/ndcg@10"] != rows[1]["eval/questions/ndcg@10"]
    for arguments, said in (
        ((), "give either --model, or --watch with the folder of a stage"),
        (("--model=bm25", f"--watch={stage}"), "give either --model, or --watch"),
        (
            (f"--watch={stage}",),
            "--watch needs --output, and takes no --compare, --run_file, --max_length, --deterministic, ",
        ),
    ):
        code, _, errors = call(*arguments)
        assert code == 2 and said in errors
