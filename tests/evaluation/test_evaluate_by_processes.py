"""`eval` by two processes of two devices gives the results of one process of one device."""

import json

import numpy as np
import pytest
from helpers import job
from helpers.tiny import tiny_config, tiny_vocabulary

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.evaluation.evaluate import evaluate_task
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.embed_file import embed_file

pytestmark = pytest.mark.slow

WORDS = "ant bee cat dog eel fox gnu hen ibis jay".split()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def command(given):
    """The words of `eval` but the output: a model of context, and documents for several blocks."""
    folder = given
    vocabulary = tiny_vocabulary(folder)
    config = tiny_config(vocabulary, max_length=64)
    save_model(folder / "model", config, vocabulary, initial_params(config, 0), stage="contextual", kind="context_v1")
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(WORDS, 3 + 3 * (n % 3))) for n in range(500)]
    relevant = generator.integers(500, size=80)
    data = RetrievalSet(
        document_ids=[f"d{number}" for number in range(500)],
        documents=documents,
        parents=[f"p{number // 4}" for number in range(500)],
        chunks=[number % 4 for number in range(500)],
        query_ids=[f"q{number}" for number in range(80)],
        queries=[" ".join([*documents[row].split()[:3], str(n)]) for n, row in enumerate(relevant)],
        qrels={f"q{number}": {f"d{row}": 1} for number, row in enumerate(relevant)},
    )
    write_beir(folder / "set", data)
    return ["eval", f"--model={folder / 'model'}", f"--task={folder / 'set'}", "--context", "--json"]


def outcomes(folder):
    """The stored outcomes, without their seconds."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / "tasks").glob("*/*.json")}
    return {name: {key: value for key, value in one.items() if key != "seconds"} for name, one in found.items()}


def test_two_processes_store_the_results_of_one(command, tmp_path):
    alone = job.start_python(["-m", "pplx_jax", *command, f"--output={tmp_path / 'one'}"])
    together = job.start_verb([*command, f"--output={tmp_path / 'two'}"], count=2, devices=2)
    one, first, second = (json.loads(output.splitlines()[-1]) for output in job.finish([alone, *together]))
    assert first["metrics"] == one["metrics"] and one["metrics"]["ndcg@10"] > 0 and second == {}
    assert len(outcomes(tmp_path / "one")) == 1
    assert outcomes(tmp_path / "two") == outcomes(tmp_path / "one")


def test_two_processes_rank_nested_pools_as_one_does(command, given, tmp_path):
    """Process 0 alone has the embeddings of the corpus; the other ranks the shards that it gets."""
    data = tmp_path / "pools"
    data.mkdir()
    for name in ("queries.jsonl", "qrels.tsv"):
        (data / name).symlink_to(given / "set" / name)
    (data / "options.json").write_text('{"sizes": [200, 500]}')
    embed_file(given / "model", given / "set" / "corpus.jsonl", data / "embeddings", shard_size=60)
    task = {"data": data, "output": tmp_path / "one"}
    one = evaluate_task(given / "model", "query-to-document", **task)
    words = ["eval", f"--model={given / 'model'}", "--task=query-to-document", f"--data={data}", "--json"]
    together = job.start_verb([*words, f"--output={tmp_path / 'two'}"], count=2, devices=1)
    first, second = (json.loads(output.splitlines()[-1]) for output in job.finish(together))
    assert first["metrics"] == one["metrics"] and second == {}
    (stored,) = outcomes(tmp_path / "one").values()
    small, large = (part["metrics"]["recall@10"] for part in stored["parts"])
    assert 0 < large < small
    assert outcomes(tmp_path / "two") == outcomes(tmp_path / "one")
