"""Reading BEIR folders, and what a broken one says."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir, set_files, set_folders
from pplx_jax.data.io.set_samples import around_queries, sampled
from pplx_jax.retrieval.metrics import judge, metrics_per_query, relevant_ranks, tie_places


def write_set(folder, *, corpus=None, queries=None, qrels="q1\td1\t1\n", zipped=False, qrels_name="qrels.tsv"):
    corpus = corpus or [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": "two"}]
    queries = queries or [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "not judged"}]
    files = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus),
        "queries.jsonl": "".join(json.dumps(row) + "\n" for row in queries),
        qrels_name: qrels,
    }
    for name, content in files.items():
        path = folder / (name + ".gz" if zipped else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") if zipped else open(path, "w") as file:
            file.write(content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("qrels_name", ["qrels.tsv", "qrels/test.tsv"])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n", "query\tdocument\tgrade\n"])
def test_layouts(tmp_path, zipped, qrels_name, header):
    write_set(tmp_path, qrels=header + "q1\td2\t2\n", zipped=zipped, qrels_name=qrels_name)
    data = read_beir(tmp_path)
    assert data.document_ids == ["d1", "d2"] and data.documents == ["one", "two"]
    assert data.query_ids == ["q1"] and data.queries == ["first"]
    assert data.qrels == {"q1": {"d2": 2}}
    assert not data.has_context


def test_titles_parents_and_chunks(tmp_path):
    corpus = [
        {"_id": "a", "title": "T", "text": "x", "parent": "p", "chunk": 4},
        {"_id": "b", "title": "", "text": "y", "parent": "p"},
        {"_id": "c", "text": "z"},
    ]
    data = read_beir(write_set(tmp_path, corpus=corpus, qrels="q1\ta\t1\n"))
    assert data.documents == ["T x", "y", "z"]
    assert data.parents == ["p", "p", "c"] and data.chunks == [4, 1, 0]
    assert data.has_context


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"corpus": [{"_id": "d1", "body": "x"}]}, 'corpus.jsonl, line 1: no "text", only _id, body'),
        ({"corpus": [{"_id": "d1", "text": 3}]}, 'corpus.jsonl, line 1: "text" is int'),
        ({"corpus": [{"_id": "d1", "text": ""}] * 2}, "corpus.jsonl, line 2: \"_id\" 'd1' occurs twice"),
        ({"corpus": [{"_id": "d1", "text": "", "chunk": "x"}]}, "line 1: \"chunk\" is 'x'"),
        ({"corpus": [{"_id": "d\ud800", "text": ""}]}, 'corpus.jsonl, line 1: "_id" holds half of a surrogate pair'),
        ({"queries": [{"_id": "q", "text": "\ud800"}]}, 'queries.jsonl, line 1: "text" holds half of a surrogate pair'),
        ({"queries": [["q1"]]}, "queries.jsonl, line 1: not a JSON object (list)"),
        (
            {"qrels": "q1\td8\t1\nq1\td9\t1\n"},
            "all of 2 judgements name a document that corpus.jsonl does not have; the first: ",
        ),
        ({"qrels": "q9\td1\t1\n"}, "qrels.tsv, line 1: unknown query-id 'q9'"),
        ({"qrels": "q1 0 d1 1\n"}, "qrels.tsv, line 1: 1 columns"),
        ({"qrels": "q1\td1\t1.0\nq1\td2\t1\n"}, "qrels.tsv, line 1: score '1.0' is not an integer"),
        ({"qrels": "q1\td1\t1\nq1\td2\tmuch\n"}, "qrels.tsv, line 2: score 'much'"),
        ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, "line 2: a second, different grade"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, "has no judgements"),
    ],
)
def test_broken_sets(tmp_path, broken, message):
    with pytest.raises(BadInput) as error:
        read_beir(write_set(tmp_path, **broken))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_judgement_of_a_missing_document_counts_as_missed(tmp_path, caplog):
    """As in trec_eval. Samples of a set keep its queries."""
    data = read_beir(write_set(tmp_path, qrels="q1\td1\t1\nq1\td9\t1\n"))
    assert data.qrels == {"q1": {"d1": 1, "d9": 1}}
    assert "1 of 2 judgements name a document that corpus.jsonl does not have" in caplog.text
    assert "qrels.tsv, line 2: 'd9'. They count as not found" in caplog.text
    scores = np.array([[1.0 if name == "d1" else 0.5 for name in data.document_ids]])
    judgements = judge(data.qrels, data.query_ids, data.document_ids)
    ranks = relevant_ranks(scores, judgements, tie_places(data.document_ids))
    found = {
        name: float(value[0])
        for name, value in metrics_per_query(ranks, judgements, ("recall@10", "map", "ndcg@10")).items()
    }
    assert found == pytest.approx({"recall@10": 0.5, "map": 0.5, "ndcg@10": 1 / (1 + 1 / np.log2(3))})
    for sample in (sampled(data, 0, 0, 0), around_queries(data, 1, 0, 0)):
        assert sample.qrels == data.qrels


def test_missing_parts(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        read_beir(tmp_path / "nowhere")
    write_set(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(BadInput, match="has no qrels.tsv or qrels/test.tsv"):
        read_beir(tmp_path)


def test_broken_bytes(tmp_path):
    write_set(tmp_path, zipped=True)
    whole = (tmp_path / "corpus.jsonl.gz").read_bytes()
    (tmp_path / "corpus.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="archive is damaged"):
        read_beir(tmp_path)
    (tmp_path / "corpus.jsonl.gz").unlink()
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "\xff"}\n')
    with pytest.raises(BadInput, match=r"line 1: not UTF-8 \(byte 24\)"):
        read_beir(tmp_path)


def test_folders_of_files_are_one_corpus_and_one_list_of_queries(tmp_path):
    for name, rows in {
        "corpus/b.jsonl": [{"_id": "d3", "text": "three"}],
        "corpus/a.jsonl": [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}],
        "queries/0.jsonl": [{"_id": "q1", "text": "first"}],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pyarrow.table({"_id": ["d4"], "text": ["four"], "title": [None]})
    pyarrow.parquet.write_table(table, tmp_path / "corpus" / "c.parquet")
    (tmp_path / "qrels.tsv").write_text("q1\td4\t1\n")
    data = read_beir(tmp_path)
    assert data.document_ids == ["d1", "d2", "d3", "d4"] and data.documents == ["T one", "two", "three", "four"]
    assert (data.query_ids, data.qrels) == (["q1"], {"q1": {"d4": 1}})
    assert set_folders(tmp_path) == [tmp_path] and len(set_files(tmp_path)) == 5
    (tmp_path / "corpus" / "b.jsonl").write_text('{"_id": "d1", "text": "again"}\n')
    with pytest.raises(BadInput, match=r"b\.jsonl, line 1: \"_id\" 'd1' occurs twice"):
        read_beir(tmp_path)


def test_a_folder_that_is_called_corpus_is_no_set(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "search.jsonl").write_text("{}\n")
    write_set(tmp_path / "sets")
    assert set_folders(tmp_path) == [tmp_path / "corpus", tmp_path / "sets"]
