"""ConTEB on tiny files of the hub's form: whole-corpus ranking of chunks, held against a computation of its own."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import pytrec_eval
from helpers.word_encoder import WordEncoder

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation import evaluate as verb
from pplx_jax.evaluation.registry import open_benchmark
from pplx_jax.evaluation.scoring.system import System
from pplx_jax.evaluation.suites import conteb

NAMES = ["ant", "bee", "cat", "dog", "eel"]
# Only the first chunk names its subject. Rows of the documents are interleaved, and numbers are not in row order.
CHUNKS = [("the {} lives here", 0), ("its food is hay", 7), ("its home is a nest", 3)]
QUERIES = [("{} food is hay", 7), ("home of the {}", 3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conteb")

    def write(name, config, rows):
        (folder / name / config).mkdir(parents=True, exist_ok=True)
        path = folder / name / config / f"{conteb.SPLITS[name]}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    for set_name, names in (("football", NAMES), ("covid-qa", NAMES[:3])):
        chunks = [
            {"chunk_id": f"{name}_{number}", "chunk": text.format(name), "og_chunk": "unused"}
            for text, number in CHUNKS
            for name in names
        ]
        write(set_name, "documents", chunks)
        rows = [(text.format(name), f"{name}_{number}") for name in names for text, number in QUERIES]
        if set_name == "football":
            write(set_name, "queries", [{"query": text, "chunk_id": chunk} for text, chunk in rows])
        else:
            write(set_name, "queries", [{"query": text, "chunk_ids": [chunk, "ant_0"]} for text, chunk in rows])
    return folder


def independent(names, *, context, several):
    """nDCG@10 by pytrec_eval over all chunks of all documents; with context a chunk leans to its document's mean."""
    model = WordEncoder(dims=256)
    run, qrels, vectors = {}, {}, {}
    for name in names:
        chunks = [text.format(name) for text, _ in CHUNKS]
        alone = model.encode(chunks, quantization="none")
        found = (alone + alone.mean(axis=0) if context else alone).astype(np.float64)  # equal chunks score equal
        vectors |= {f"{name}_{number}": vector for (_, number), vector in zip(CHUNKS, found, strict=True)}
    for name in names:
        for text, number in QUERIES:
            query = model.encode([text.format(name)], quantization="none")[0]
            of_query = f"{name}/{number}"
            run[of_query] = {
                chunk: float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))
                for chunk, vector in vectors.items()
            }
            qrels[of_query] = {chunk: 1 for chunk in {f"{name}_{number}", *(["ant_0"] if several else [])}}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    return np.mean([values["ndcg_cut_10"] for values in found.values()])


def test_late_chunking_against_plain(data):
    benchmark = open_benchmark("conteb", data)
    assert [task.name for task in benchmark.tasks] == list(conteb.SPLITS) and len(conteb.SPLITS) == 8
    tasks = {task.name: task for task in benchmark.tasks}
    found = {}
    for context in (False, True):
        system = System("words", WordEncoder(dims=256), verb.Settings("none", context=context))
        parts = {name: tasks[name].evaluate(system) for name in ("football", "covid-qa")}
        for name, names in (("football", NAMES), ("covid-qa", NAMES[:3])):
            expected = independent(names, context=context, several=name == "covid-qa")
            assert parts[name][0].metrics["ndcg@10"] == pytest.approx(expected, abs=1e-6)
            assert parts[name][0].documents == 3 * len(names) and parts[name][0].split == "train"
        found[context] = benchmark.averages(parts)["ndcg@10"]
        assert found[context] == np.mean([of[0].metrics["ndcg@10"] for of in parts.values()])
    assert found[True] > found[False] + 0.1
    also = parts | {"narrative-qa": tasks["football"].evaluate(System("bm25", None, verb.Settings()))}
    averages = benchmark.averages(also)
    assert averages[conteb.OTHERS] == benchmark.averages(parts)["ndcg@10"] != averages["ndcg@10"]
    assert conteb.OTHERS not in benchmark.averages({"narrative-qa": also["narrative-qa"]})


def test_a_chunks_place_is_that_of_its_row(data):
    (task,) = (task for task in open_benchmark("conteb", data).tasks if task.name == "football")
    found = task.load()
    rows = [row for row, parent in enumerate(found.parents) if parent == "bee"]
    assert [found.documents[row] for row in sorted(rows, key=lambda row: found.chunks[row])] == [
        text.format("bee") for text, _ in CHUNKS
    ]


def test_both_ways_through_the_command_line(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "load_encoder", lambda path, **prompts: WordEncoder(dims=256))
    arguments = ["eval", "--model=m", "--task=conteb", "--tasks=football", f"--data={data}", "--context=both", "--json"]
    assert cli.main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    result = json.loads(capsys.readouterr().out)
    alone, within = result["settings"]
    assert (alone["setting"], within["setting"]) == ("int8", "int8-context")
    assert within["tasks"][0]["main"] > alone["tasks"][0]["main"]
    assert result["metrics"]["ndcg@10"] == alone["tasks"][0]["main"]


def test_damaged_data_is_named(tmp_path):
    def attempt(documents, queries):
        for config, rows in (("documents", documents), ("queries", queries)):
            folder = tmp_path / "insurance" / config
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (task,) = (task for task in open_benchmark("conteb", tmp_path).tasks if task.name == "insurance")
        with pytest.raises(BadInput) as caught:
            task.load()
        return str(caught.value)

    good, query = {"chunk_id": "a_0", "chunk": "x"}, {"query": "q", "chunk_id": "a_0"}
    assert "the chunk 'a_0' occurs twice" in attempt([good, good], [query])
    assert "'a' is not DOCUMENT_NUMBER" in attempt([{"chunk_id": "a", "chunk": "x"}], [query])
    assert "refers to the chunk 'b_1', which does not exist" in attempt([good], [{"query": "q", "chunk_id": "b_1"}])
    assert "chunk of row 1 is int, not a string" in attempt([{"chunk_id": "a_0", "chunk": 7}], [query])
    assert "chunk_id of row 1 is int, not a string" in attempt([{"chunk_id": 7, "chunk": "x"}], [query])
    for asked in (7, [7]):
        assert f"has the chunk_id {asked}, not a string" in attempt([good], [{"query": "q", "chunk_id": asked}])
    assert "a query has no chunk_id, only query" in attempt([good], [{"query": "q"}])
