"""Retrieval scores of a model in training: those of its checkpoint, on any devices, by one process or several."""

import json
import pathlib

import numpy as np
import pytest
from helpers import job, tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.evaluation.scoring.retrieval_evaluator import RetrievalEvaluator, read_evaluation_sets
from pplx_jax.evaluation.scoring.retrieval_sets import read_sets, score_model
from pplx_jax.inference.embedder import Embedder
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Evaluation
from pplx_jax.training.train_stage import train

pytestmark = pytest.mark.long

WORDS = "read write open close file index vector table line block".split()
SIZE = {"chunks_per_document": 3, "tokens_per_document": 60}


def write_set(folder: pathlib.Path, seed: int) -> None:
    """A set of 24 passages in 8 documents, and 12 queries that no model can answer."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(generator.choice(WORDS, 4))

    passages = [{"_id": f"p{n}", "text": text(), "parent": f"d{n // 3}", "chunk": n % 3} for n in range(24)]
    queries = [{"_id": f"q{n}", "text": text()} for n in range(12)]
    judged = [f"q{n}\tp{generator.integers(24)}\t1\n" for n in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels.tsv").write_text("".join(judged))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A folder with the tables of all stages, their vocabulary, and two retrieval sets."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.tiny_tables(folder, tiny.tiny_vocabulary(folder))
    for seed, name in enumerate(("first", "second")):
        write_set(folder / "sets" / name, seed)
    return folder


# What every process runs: two steps with an evaluation after each. Eight sequences, whatever the devices.
TRAIN = """
import functools
from pplx_jax.evaluation.scoring.retrieval_evaluator import RetrievalEvaluator, read_evaluation_sets
from pplx_jax.training.settings import Evaluation

def evaluated(folder, name, mesh):
    vocabulary = load_vocabulary(setting / "vocabulary.model")
    table = TokenTable.open(setting / name, kind=KIND_OF_FOLDER[name], vocabulary=vocabulary)
    evaluation = Evaluation(every_steps=1, sets=(str(setting / "sets"),) if name == "contextual" else (), held_out=8)
    stage = tiny.with_sequences(tiny.STAGES[name], 8)
    training = tiny.training(name, stage=stage, optimizer=tiny.ROBUST_OPTIMIZER, steps=2, evaluation=evaluation)
    sets = read_evaluation_sets(evaluation, setting)
    def retrieval(config, devices):
        size = {"chunks_per_document": 3, "tokens_per_document": 60}
        return RetrievalEvaluator(sets, config, vocabulary, devices, contextual=True, **size)
    config = tiny.tiny_config(vocabulary, kv_heads=2, mlp_width=16)
    train(folder, training, config, table, vocabulary, mesh=mesh, seed=3, evaluators=[retrieval] if sets else [])
"""
STAGES = ("diffusion", "contextual")
ALONE = f"""
{TRAIN}
for name in {STAGES}:
    evaluated(output / "one" / name, name, Mesh())
    evaluated(output / "eight" / name, name, Mesh(data=2, fsdp=2, tensor=2))
"""
TOGETHER = f"""
{TRAIN}
with joined(Processes()):
    for name in {STAGES}:
        evaluated(output / "two" / name, name, Mesh(data=2, fsdp=4))
"""


@pytest.fixture(scope="module")
def outputs(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    started = job.start_job(TOGETHER, setting, folder, count=2, devices=4)
    job.finish([job.start(ALONE, setting, folder, devices=8), *started])
    return folder


def evaluations(folder: pathlib.Path) -> dict[tuple[int, str], float]:
    rows = read_metrics(folder / "metrics.jsonl")
    return {(row["step"], name): row[name] for row in rows for name in row if name.startswith("eval/")}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[key] for key in one], [other[key] for key in one], rtol=1e-5)


@pytest.mark.parametrize("devices", ["eight", "two"])
@pytest.mark.parametrize("stage", STAGES)
def test_any_mesh_and_two_processes_evaluate_as_one_device_does(outputs, devices, stage):
    one = evaluations(outputs / "one" / stage)
    assert len(one) == 2 * (2 + (2 * 3 * 2 if stage == "contextual" else 0))  # loss; ways, sets and mean, metrics
    assert_equal(evaluations(outputs / devices / stage), one)


@pytest.mark.parametrize("stage", STAGES)
def test_other_parameters_have_other_numbers(outputs, stage):
    found = evaluations(outputs / "one" / stage)
    first, second = ({name: found[step, name] for at, name in found if at == step} for step in (1, 2))
    with pytest.raises(AssertionError):
        assert_equal(first, second)


@pytest.fixture(scope="module")
def trained(setting, tmp_path_factory):
    """A contextual stage of three steps with an evaluation at the second and the last."""
    folder = tmp_path_factory.mktemp("trained") / "contextual"
    vocabulary = tiny.tiny_vocabulary(folder.parent)
    tables = tiny.tiny_tables(folder.parent, vocabulary)
    evaluation = Evaluation(every_steps=2, sets=(str(setting / "sets"),))
    sets = read_evaluation_sets(evaluation, setting)

    def retrieval(config, devices):
        return RetrievalEvaluator(sets, config, vocabulary, devices, contextual=True, **SIZE)

    train(
        folder,
        tiny.training("contextual", steps=3, evaluation=evaluation),
        tiny.tiny_config(vocabulary),
        tables["contextual"],
        vocabulary,
        mesh=Mesh(),
        seed=3,
        evaluators=[retrieval],
    )
    return folder


def test_the_last_evaluation_is_that_of_the_checkpoint(setting, trained):
    found = evaluations(trained)
    assert {step for step, _ in found} == {2, 3}
    scores = score_model(Embedder.load(trained), read_sets(setting / "sets"), contextual=True, **SIZE)
    for way, key in (("", "without_context"), ("with_context/", "with_context")):
        for metric in ("ndcg@10", "recall@100"):
            assert found[3, f"eval/mean/{way}{metric}"] == pytest.approx(scores[key]["int8"][metric])
            for name in ("first", "second"):
                of_set = scores["sets"][name][key]["int8"][metric]
                assert found[3, f"eval/{name}/{way}{metric}"] == pytest.approx(of_set)
    assert found[3, "eval/first/ndcg@10"] != found[3, "eval/first/with_context/ndcg@10"]
    assert found[3, "eval/first/ndcg@10"] != found[2, "eval/first/ndcg@10"]


def test_sets_are_cut_around_their_queries(setting):
    whole = read_beir(setting / "sets" / "first")
    [few] = read_evaluation_sets(
        Evaluation(1, (str(setting / "sets" / "first"),), queries=4, documents=1), setting
    ).values()
    assert len(few.query_ids) == 4 and set(few.query_ids) < set(whole.query_ids)
    judged = {document for query in few.query_ids for document in few.qrels[query]}
    parents = {whole.parents[whole.document_ids.index(document)] for document in judged}
    assert set(few.parents) == parents and len(few.document_ids) == 3 * len(parents)  # whole documents, no others
    more = read_evaluation_sets(Evaluation(1, (str(setting / "sets" / "first"),), queries=4, documents=18), setting)
    assert len(more["first"].document_ids) == 18 and more["first"].query_ids == few.query_ids
    assert set(few.document_ids) < set(more["first"].document_ids)


def test_sets_default_to_those_of_the_corpus(setting, tmp_path):
    assert list(read_evaluation_sets(Evaluation(1), setting / "sets")) == ["first", "second"]
    with pytest.raises(
        BadInput, match="no evaluation sets in .*nowhere: the folder does not exist; set Evaluation.sets"
    ):
        read_evaluation_sets(Evaluation(1), tmp_path / "nowhere")
    with pytest.raises(BadInput, match="first is called first like other metrics; rename the folder"):
        read_evaluation_sets(Evaluation(1, (str(setting / "sets"), str(setting / "sets" / "first"))), tmp_path)
