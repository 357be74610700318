"""Scoring a model on a BEIR folder: with and without context, at each quantization, and as a run file."""

import json
import shutil

import numpy as np
import pytest
from helpers.trec_eval import run_metrics
from helpers.word_encoder import WordEncoder

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.data.io.trec_run import read_run
from pplx_jax.evaluation.evaluate import evaluate_task
from pplx_jax.evaluation.scoring.retrieval_sets import evaluate_bm25, evaluate_set
from pplx_jax.evaluation.scoring.set_embeddings import context_groups, embed_set

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


@pytest.fixture
def folder(tmp_path):
    """Only the first passage of a parent names its subject, so that the query needs the context."""
    corpus, queries, qrels = [], [], []
    for number, name in enumerate(NAMES):
        texts = [f"the {name} lives here", "its food is hay", "its home is a nest"]
        # Listed backwards: the order of chunks is that of "chunk", not of the file.
        for chunk in (2, 1, 0):
            passage = {"_id": f"{number}-{chunk}", "text": texts[chunk], "parent": name, "chunk": chunk}
            corpus.append(passage)
        queries.append({"_id": name, "text": f"{name} food is hay"})
        qrels.append(f"{name}\t{number}-1\t1\n")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (tmp_path / "qrels.tsv").write_text("".join(qrels))
    return tmp_path


def test_context_finds_what_passages_alone_cannot(folder):
    model = WordEncoder(dims=256)
    alone = evaluate_set(model, folder)
    in_context = evaluate_set(model, folder, context=True)
    assert list(alone) == list(in_context) == ["float", "int8", "binary"]
    assert list(alone["float"]) == ["ndcg@10", "recall@100"]
    assert alone["float"]["ndcg@10"] < 0.8
    assert in_context["float"]["ndcg@10"] > 0.95


def test_a_pattern_names_folders_and_tasks(tmp_path):
    def write(path, text):
        path.mkdir(parents=True)
        (path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": text}) + "\n")
        (path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": text}) + "\n")
        (path / "qrels.tsv").write_text("q\td\t1\n")

    for name in ("nano-b", "nano-a", "other"):
        write(tmp_path / "sets" / name, name)
    (tmp_path / "sets" / "nano.txt").write_text("no folder")

    def tasks(pattern, **options):
        found = evaluate_task("bm25", pattern, output=tmp_path / "results", **options)
        shutil.rmtree(tmp_path / "results")
        return found["benchmark"], [one["task"] for one in found["settings"][0]["tasks"]]

    assert tasks(tmp_path / "sets" / "nano*") == ("sets/nano*", ["nano-a", "nano-b"])
    assert tasks(tmp_path / "s*") == (f"{tmp_path.name}/s*", ["nano-a", "nano-b", "other"])  # a folder of them
    assert tasks(tmp_path / "sets", tasks=["nano-?", "oth*", "other"]) == ("sets", ["nano-a", "nano-b", "other"])
    assert tasks(tmp_path / "sets", tasks=["*b"]) == ("sets", ["nano-b"])
    with pytest.raises(BadInput, match="only files match this pattern"):
        evaluate_task("bm25", tmp_path / "sets" / "*.txt")
    write(tmp_path / "more" / "other", "x")
    with pytest.raises(BadInput, match="has two sets of the name other"):
        evaluate_task("bm25", tmp_path / "*" / "other")


def test_texts_are_encoded_once_for_all_quantizations(folder):
    model = WordEncoder()
    evaluate_set(model, folder, ("none", "int8", "binary", "ubinary", "tanh"))
    assert model.encoded == len(NAMES) * (1 + 3)


def test_packed_and_unpacked_signs_score_alike(folder):
    scores = evaluate_set(WordEncoder(), folder, ("binary", "ubinary"))
    assert scores["binary"] == scores["ubinary"]


def test_vectors_in_context_come_back_in_the_order_of_the_set(folder):
    model, data = WordEncoder(), read_beir(folder)
    _, documents = embed_set(model, data, context=True)
    chunks = ["the ant lives here", "its food is hay", "its home is a nest"]
    expected = model.encode_documents([chunks], quantization="none")[0]
    np.testing.assert_array_equal(documents[:3], expected[::-1])


def test_parents_longer_than_the_model_takes_are_split(folder):
    data = read_beir(folder)
    tokens = WordEncoder().count_tokens(data.documents)
    groups = list(context_groups(data, tokens, most_chunks=2, most_tokens=100))
    assert groups[:2] == [[2, 1], [0]]
    by_tokens = list(context_groups(data, tokens, most_chunks=16, most_tokens=10))
    assert by_tokens[:2] == [[2, 1], [0]]  # 4 + 4 + a separator; 5 more do not fit
    assert sorted(sum(by_tokens, [])) == list(range(len(data.documents)))
    alone = list(context_groups(data, tokens, most_chunks=16, most_tokens=3))
    assert all(len(group) == 1 for group in alone)


def test_a_text_past_the_limit_is_an_error_unless_cut(folder):
    model = WordEncoder(max_length=4)
    with pytest.raises(BadInput, match="5 tokens"):
        evaluate_set(model, folder)
    evaluate_set(model, folder, overflow="truncate")
    evaluate_set(model, folder, overflow="truncate", context=True)


@pytest.mark.parametrize("kind", ["bm25", "words"])
def test_a_run_file_gives_the_metrics_again(folder, kind):
    model = "bm25" if kind == "bm25" else WordEncoder()
    result = evaluate_task(model, folder, run_file=folder / "out.trec")
    assert (result["queries"], result["documents"]) == (6, 18)
    run = {}
    for line in (folder / "out.trec").read_text().splitlines():
        query, zero, document, rank, score, tag = line.split()
        assert (zero, tag) == ("Q0", "pplx-jax")
        assert int(rank) == len(run.setdefault(query, {})) + 1
        run[query][document] = float(score)
    of_trec_eval = {name: value for name, value in result["metrics"].items() if not name.startswith("completeness")}
    assert run_metrics(run, read_beir(folder).qrels, of_trec_eval) == pytest.approx(of_trec_eval)
    if kind == "bm25":
        assert {k: result["metrics"][k] for k in ("ndcg@10", "recall@100")} == evaluate_bm25(folder)


def write(folder, corpus, queries, qrels):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in corpus.items()))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()))
    (folder / "qrels.tsv").write_text("".join(f"{query}\t{document}\t1\n" for query, document in qrels))


@pytest.mark.parametrize("kind", ["bm25", "int8", "binary", "ubinary", "none"])
def test_what_shares_nothing_with_a_query_is_not_retrieved(tmp_path, kind):
    """The relevant documents of two queries have the greatest id, so that ties would put them first."""
    corpus = {"a": "ant bee", "b": "bee cat", "empty": "", "z": "dog"}
    queries = {"found": "bee", "none": "qqqq" if kind == "bm25" else "", "of-empty": "ant"}
    write(tmp_path, corpus, queries, [("found", "b"), ("none", "z"), ("of-empty", "empty")])
    options = {} if kind == "bm25" else {"quantization": kind}
    model = "bm25" if kind == "bm25" else WordEncoder(dims=64)
    result = evaluate_task(model, tmp_path, run_file=tmp_path / "out.trec", **options)
    run = [line.split() for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert {cells[0] for cells in run} == {"found", "of-empty"}
    assert "empty" not in {cells[2] for cells in run}
    assert len(run) == (3 if kind == "bm25" else 6)
    assert result["metrics"]["recall@100"] == pytest.approx(1 / 3)
    assert 0.2 < result["metrics"]["ndcg@10"] <= 1 / 3 + 1e-9
    assert result["metrics"]["map"] <= 1 / 3 + 1e-9


@pytest.mark.parametrize("kind", ["bm25", "words"])
def test_the_document_of_a_query_itself_is_dropped_as_in_arguana(tmp_path, kind):
    corpus = {"q1": "ant bee cat", "q2": "cat dog bee", "a": "ant bee", "b": "dog gnu"}
    write(tmp_path, corpus, {"q1": "ant bee cat", "q2": "cat dog bee"}, [("q1", "a"), ("q2", "b")])
    model = "bm25" if kind == "bm25" else WordEncoder(dims=256)

    def figure(own_document=None):
        options = {"run_file": tmp_path / "out.trec", "own_document": own_document}
        found = evaluate_task(model, tmp_path, **options)["metrics"]["mrr"]
        run = {tuple(line.split()[0:3:2]) for line in (tmp_path / "out.trec").read_text().splitlines()}
        return found, ("q1", "q1") in run, ("q1", "q2") in run

    assert figure() == figure("drop") == (pytest.approx(0.75), False, True)
    assert figure("keep") == (pytest.approx((1 / 2 + 1 / 3) / 2), True, True)
    with open(tmp_path / "qrels.tsv", "a") as file:
        file.write("q2\tq2\t1\n")
    assert figure()[1] is True
    corpus["q1"] = "cat ant"  # ids that are equal by chance, as row numbers are
    write(tmp_path, corpus, {"q1": "ant bee cat", "q2": "cat dog bee"}, [("q1", "a"), ("q2", "b")])
    assert figure()[1] is True and figure("drop")[1] is False


def test_another_choice_for_own_documents_is_scored_again(tmp_path):
    write(tmp_path / "set", {"q": "ant bee", "a": "ant"}, {"q": "ant bee"}, [("q", "a")])
    options = {"output": tmp_path / "results"}
    figures = [
        evaluate_task("bm25", tmp_path / "set", own_document=choice, **options)["metrics"]["mrr"]
        for choice in (None, "keep", "drop")
    ]
    assert figures == [1, 0.5, 1]
    with pytest.raises(BadInput, match="own_document='no': give one of keep, drop"):
        evaluate_task("bm25", tmp_path / "set", own_document="no")


def test_every_metric_ends_with_the_run_file(tmp_path):
    """The relevant document is at rank 1,001 of 1,100."""
    corpus = {f"d{number:04d}": "bee" for number in range(1100)}
    write(tmp_path, corpus, {"q": "bee", "p": "bee"}, [("q", "d0099"), ("p", "d0100")])
    result = evaluate_task("bm25", tmp_path, run_file=tmp_path / "out.trec")
    run = read_run(tmp_path / "out.trec")
    assert list(map(len, run.values())) == [1000, 1000] and "d0099" not in run["q"]
    names = ("map", "mrr", "recall@1000", "ndcg@10")
    expected = run_metrics(run, read_beir(tmp_path).qrels, names)
    assert {name: result["metrics"][name] for name in names} == pytest.approx(expected, abs=1e-9)
    assert result["metrics"]["map"] == pytest.approx(1 / 1000 / 2)


def test_a_title_and_its_text_are_joined_as_in_beir(tmp_path):
    write(tmp_path, {}, {"q": "ant"}, [("q", "a")])
    rows = [
        {"_id": "a", "title": " Ant", "text": "bee\n"},
        {"_id": "b", "text": " cat "},
        {"_id": "c", "title": "dog", "text": ""},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_beir(tmp_path).documents == ["Ant bee", "cat", "dog"]


def test_a_split_has_its_own_judgements(tmp_path):
    write(tmp_path / "set", {"a": "ant", "b": "bee"}, {"p": "ant", "q": "bee"}, [])
    (tmp_path / "set" / "qrels.tsv").unlink()
    (tmp_path / "set" / "qrels").mkdir()
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("p\ta\t1\n")
    (tmp_path / "set" / "qrels" / "dev.tsv").write_text("p\ta\t1\nq\ta\t1\n")
    found = [evaluate_task("bm25", tmp_path / "set", output=tmp_path / "r", split=name) for name in (None, "dev")]
    assert [one["metrics"]["mrr"] for one in found] == [1, 0.5]
    assert found[1]["settings"][0]["tasks"][0]["parts"][0]["split"] == "dev"
    with pytest.raises(BadInput, match="no qrels.tsv or qrels/train.tsv"):
        evaluate_task("bm25", tmp_path / "set", split="train")
    with pytest.raises(BadInput, match="--split is for BEIR folders"):
        evaluate_task("bm25", "toolret", data=tmp_path, split="dev")


def test_an_id_that_a_run_file_cannot_hold(folder):
    with open(folder / "corpus.jsonl", "a") as file:
        file.write('{"_id": "two words", "text": "ant"}\n')
    with pytest.raises(BadInput, match="white space"):
        evaluate_task("bm25", folder, run_file=folder / "out.trec")
    assert not (folder / "out.trec").exists()
