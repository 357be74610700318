"""`search`: a query or a file of queries, and documents shown by their chunks."""

import json
import re

import numpy as np
import pytest
from helpers import job, tiny
from helpers.word_encoder import WordEncoder
from helpers.word_index import make_index

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.trec_run import read_run
from pplx_jax.kernels.quantization import quantize
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder
from pplx_jax.retrieval.local.index_part import IndexPart
from pplx_jax.retrieval.search_index import search_index
from pplx_jax.retrieval.search_options import SearchOptions

TEXT = "Open the socket. Close the socket. Sort a list. Read a file."


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    """Documents of one to sixty chunks, cut from texts, and an empty one."""
    rows = [
        {"id": "net", "text": TEXT, "path": "net.py"},
        {"id": "none", "text": ""},
        {"id": "one", "text": "read it."},
        {"id": "many", "text": " ".join(f"item{number} of the list." for number in range(60))},
    ]
    folder = tmp_path_factory.mktemp("chunked")
    return make_index(folder, rows, encoder=WordEncoder(max_length=400), chunk_tokens=4)


def search(index, query=None, k=10, **options):
    return search_index(index, query, k, encoder=WordEncoder(max_length=400), **options)


@pytest.mark.parametrize("engine", [None, "numpy", "jax"])
def test_a_document_is_one_hit_and_shows_its_best_chunks(chunked, engine):
    hits = search(chunked, "Read a file.", engine=engine)["hits"]
    assert sorted(hit["document"] for hit in hits) == ["many", "net", "one"]  # "many" has not taken the places
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    best = next(hit for hit in hits if hit["document"] == "net")
    assert (best["id"], best["text"].strip(), best["chunk"], best["path"]) == ("net#3", "Read a file.", 3, "net.py")
    assert TEXT[best["start"] : best["end"]] == best["text"]
    assert [chunk["id"] for chunk in best["chunks"]][0] == "net#3" and len(best["chunks"]) == 3
    scores = [chunk["score"] for chunk in best["chunks"]]
    assert scores[0] == best["score"] and scores == sorted(scores, reverse=True)
    for chunk in best["chunks"]:
        assert TEXT[chunk["start"] : chunk["end"]] == chunk["text"]


def test_documents_rank_by_their_best_chunk_among_all(chunked):
    index = IndexPart.load(chunked)
    pooled = WordEncoder(max_length=400).encode(["item7 of the list"], quantization="none")
    numbers, scores = index.nearest(quantize(pooled, "int8"), 100, SearchOptions("numpy"))
    best = {}
    for row, score in zip(index.rows(numbers[0]), scores[0], strict=True):
        best.setdefault(row["document"], (row["id"], float(score)))
    for k in (1, 2, 3):
        hits = index.search_pooled(pooled, k, SearchOptions("numpy"))[0]
        assert [(hit["id"], hit["score"]) for hit in hits] == list(best.values())[:k]


def test_chunks_that_came_as_such_have_no_offsets(tmp_path):
    hit = search_index(make_index(tmp_path), "open socket", 1, encoder=WordEncoder())["hits"][0]
    assert "start" not in hit and [chunk["id"] for chunk in hit["chunks"]] == ["e#1", "e#0"]
    assert "chunks" not in search_index(tmp_path / "index", "sort list", 1, encoder=WordEncoder())["hits"][0]


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.jsonl"
    texts = {"q1": "read a file", "q2": "open socket", "q3": "item7 of the list"}
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()))
    return path


def test_a_file_of_queries_is_each_query_alone(chunked, queries, tmp_path):
    found = search(chunked, k=2, queries=queries, output=tmp_path / "run.jsonl")
    assert found["queries"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q1", "q2", "q3"]
    for line in lines:
        assert line["hits"] == search(chunked, line["text"], 2)["hits"]
    search(chunked, k=2, queries=queries, output=tmp_path / "run.trec")
    run = read_run(tmp_path / "run.trec")
    for line in lines:
        expected = {hit["document"]: hit["score"] for hit in line["hits"]}
        assert {document: np.float32(score) for document, score in run[line["id"]].items()} == expected


def test_documents_of_one_id_are_named_once_in_a_run(tmp_path, queries, capsys):
    rows = [{"id": "a", "text": "read a file"}, {"id": "b", "text": "read it"}, {"id": "a", "text": "read a list"}]
    rows += [{"id": "a", "chunks": ["file", "socket"]}]
    index = make_index(tmp_path / "index", rows)
    note = "2 documents have the id of an earlier document, the first is 'a'"
    assert [line for line in capsys.readouterr().err.splitlines() if "id of an earlier" in line] == [f"rows: {note}"]
    search(index, queries=queries, output=tmp_path / "run.trec")
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [(line[2], line[3]) for line in lines if line[0] == "q1"] == [("a", "1"), ("b", "2")]
    best = search(index, "read a file", 1)["hits"][0]["score"]
    assert read_run(tmp_path / "run.trec")["q1"]["a"] == np.float32(best)


def test_ids_that_are_unique_are_not_spoken_of(tmp_path, capsys):
    make_index(tmp_path)
    assert "earlier" not in capsys.readouterr().err


def test_what_is_refused(chunked, queries, tmp_path):
    output = tmp_path / "run.trec"
    for options, message in (
        ({}, "give a query"),
        ({"query": "a", "queries": queries}, "not both"),
        ({"query": "a", "output": output}, "--output is for the rankings of --queries FILE"),
        ({"queries": queries}, "needs --output"),
        ({"queries": queries, "output": tmp_path / "run.txt"}, "as .trec or .jsonl"),
        ({"queries": queries, "output": tmp_path / "none" / "run.trec"}, "does not exist; create it first"),
        ({"queries": tmp_path / "none.jsonl", "output": output}, "cannot read"),
        ({"query": "a", "engine": "elastic"}, "engine='elastic'"),
        ({"query": "a", "candidates": 0}, "candidates=0"),
        ({"query": "a", "k": 0}, "k=0"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            search(chunked, **options)
    for line, message in (
        ('{"id": "x", "text": " "}', "line 4: no text to search for"),
        ('{"id": "x"}', 'line 4: neither "text"'),
        ('{"id": "q1", "text": "a"}', "line 4: a second query of id 'q1'"),
        ('{"id": "a b", "text": "a"}', "white space"),
        ('{"id": "\\ud800", "text": "a"}', 'line 4: "id" contains half of a surrogate pair'),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(queries.read_text() + line + "\n")
        with pytest.raises(BadInput, match=message):
            search(chunked, queries=bad, output=output)
        assert not output.exists() and not list(tmp_path.glob(".*"))


def test_the_command_line_passes_everything(chunked, queries, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pplx_jax.retrieval.search_index.load_encoder", lambda _: WordEncoder(max_length=400))
    command = ["search", "--json", f"--index={chunked}", "--k=2", "--engine=numpy", "--candidates=3", "--probes=2"]
    assert cli.main([*command, "Read a file."]) == cli.DONE
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]][0] == "net#3"
    assert cli.main([*command, f"--queries={queries}", f"--output={tmp_path / 'run.trec'}"]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["queries"] == 3
    assert cli.main(command) == cli.BAD_INPUT
    plain = ["search", f"--index={chunked}", "Read a file."]
    assert cli.main(plain) == cli.DONE and "net#3" in capsys.readouterr().out


def test_a_moved_index_is_told_where_its_model_is(chunked, queries, tmp_path, monkeypatch, capsys):
    loaded = []

    def load(path):
        loaded.append(path)
        return WordEncoder(max_length=400)

    monkeypatch.setattr("pplx_jax.retrieval.search_index.load_encoder", load)
    command = ["search", f"--index={chunked}", f"--model={tmp_path / 'model'}"]
    assert cli.main([*command, "Read a file."]) == cli.DONE
    assert cli.main([*command, f"--queries={queries}", f"--output={tmp_path / 'run.trec'}"]) == cli.DONE
    assert loaded == [tmp_path / "model"] * 2
    capsys.readouterr()


def test_a_query_that_is_too_long_is_named(chunked, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": f"q{n}", "text": "x " * n}) + "\n" for n in (9, 401)))
    with pytest.raises(BadInput, match="'q401' has 401 tokens, the model takes 400; shorten"):
        search(chunked, queries=tmp_path / "in.jsonl", output=tmp_path / "run.trec")
    with pytest.raises(BadInput, match="'the query' has 401 tokens, the model takes 400; shorten"):
        search(chunked, "x " * 401)


def test_rows_and_queries_have_the_prompts_of_the_model_or_those_of_the_index(tmp_path):
    """Embeddings hold prompted documents. A search reads from the index which prompts were given."""
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary)
    params = initial_params(config, 0)
    save_model(tmp_path / "model", config, vocabulary, params, stage="pair", prompts={"document": "tell: "})
    save_model(tmp_path / "plain", config, vocabulary, params, stage="pair")
    texts = [f"read the file {n}" for n in range(6)]
    for name, prompt in (("rows", ""), ("own", "tell: "), ("given", "say: ")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": prompt + text}) + "\n" for text in texts))
    embed_file(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "a")
    embed_file(tmp_path / "plain", tmp_path / "own.jsonl", tmp_path / "b")
    other = {"query_prompt": "ask: ", "document_prompt": "say: "}
    embed_file(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "c", **other)
    embed_file(tmp_path / "plain", tmp_path / "given.jsonl", tmp_path / "d")
    vectors = {name: np.load(tmp_path / name / "00000.npy") for name in "abcd"}
    np.testing.assert_array_equal(vectors["a"], vectors["b"])
    np.testing.assert_array_equal(vectors["c"], vectors["d"])
    assert (vectors["a"] != vectors["c"]).any()
    folders = {name: EmbeddingFolder.read(tmp_path / name) for name in "abc"}
    assert folders["a"].totals()["tokens"] == folders["b"].totals()["tokens"]
    assert folders["a"].settings.prompts == {} and folders["c"].settings.prompts == other
    for name in "cd":
        build_index(tmp_path / name, tmp_path / f"index-{name}", engine="numpy")
    prompted = search_index(tmp_path / "index-c", "the file 3")["hits"]
    written = search_index(tmp_path / "index-d", "ask: the file 3")["hits"]
    plain = search_index(tmp_path / "index-d", "the file 3")["hits"]
    scores = [[hit["score"] for hit in hits] for hits in (prompted, written, plain)]
    assert scores[0] == scores[1] != scores[2]


def test_queries_of_many_files(tmp_path):
    index = make_index(tmp_path)
    (tmp_path / "queries").mkdir()
    for number, text in enumerate(("read a file", "sort a list")):
        (tmp_path / "queries" / f"{number}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    found = search_index(
        index, queries=tmp_path / "queries" / "*.jsonl", output=tmp_path / "run.jsonl", encoder=WordEncoder()
    )
    assert found["queries"] == 2
    written = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in written] == [("1", "read a file"), ("2", "sort a list")]


@pytest.mark.slow
def test_no_command_opens_more_than_a_few_hundred_files(tmp_path):
    (output,) = job.finish([job.start_python(["-m", "helpers.few_files", str(tmp_path)])])
    best = dict.fromkeys(("faiss", "numpy"), "d77")
    assert json.loads(output.splitlines()[-1]) == {"shards": 300, "fed": 300, **best}
