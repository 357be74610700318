"""Several sets at once: their mean, each one's own figures, and that no text is encoded twice."""

import dataclasses

import numpy as np
import pytest
from helpers.word_encoder import WordEncoder

from pplx_jax.data.io.beir import RetrievalSet, read_beir
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.evaluation.scoring import caching_encoder
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.evaluation.scoring.retrieval_sets import (
    evaluate_set,
    read_probes,
    read_sets,
    score_bm25,
    score_model,
    score_sets,
)
from pplx_jax.recipes.results import format_sets

ALONE = RetrievalSet(
    document_ids=["a", "b", "c"],
    documents=["red apple", "green pear", "blue sky"],
    parents=["a", "b", "c"],
    chunks=[0, 0, 0],
    query_ids=["1", "2"],
    queries=["red", "sky pear"],
    qrels={"1": {"a": 1}, "2": {"c": 1}},
)
GROUPED = dataclasses.replace(ALONE, parents=["p", "p", "q"], chunks=[1, 0, 0], queries=["green apple", "sky"])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sets").mkdir()
    for name, data in (("alone", ALONE), ("grouped", GROUPED)):
        write_beir(tmp_path / "sets" / name, data)
    return tmp_path / "sets"


def test_a_written_set_reads_back(folder):
    assert read_beir(folder / "grouped") == GROUPED
    assert read_sets(folder) == {"alone": ALONE, "grouped": GROUPED}
    assert read_sets(folder / "alone") == ALONE


def test_figures_are_means_and_each_sets_own():
    values = {"x": {"m": {"r": 0.2}, "n": 1.0}, "y": {"m": {"r": 0.6}, "n": 0.0}}
    found = score_sets({"x": ALONE, "y": GROUPED}, lambda one: values["x" if one is ALONE else "y"])
    assert found["sets"] == values and found["n"] == 0.5
    assert found["m"]["r"] == pytest.approx(0.4)
    assert score_sets(ALONE, lambda one: values["x"]) == values["x"]


def test_a_model_is_scored_as_on_each_set_alone(folder):
    model = WordEncoder()
    found = score_model(model, read_sets(folder), contextual=True, chunks_per_document=4)
    for name, data in (("alone", ALONE), ("grouped", GROUPED)):
        own = found["sets"][name]
        assert own["without_context"] == evaluate_set(model, data, overflow="truncate")
        within = evaluate_set(model, data, context=True, overflow="truncate", chunks_per_document=4)
        assert own["with_context"] == (within if data.has_context else own["without_context"])
    assert "with_context" not in score_model(model, read_sets(folder))


def test_probes_are_in_no_mean_and_every_query_is_kept(folder, tmp_path):
    probes = {"grouped": GROUPED}
    sets = read_sets(folder)
    model = WordEncoder()
    plain, found = score_model(model, sets, contextual=True), score_model(model, sets, probes, contextual=True)
    assert found["probes"] == {"grouped": found["sets"]["grouped"]}
    assert {name: found[name] for name in plain if name != "per_query"} == {
        name: value for name, value in plain.items() if name != "per_query"
    }
    names = {"alone", "grouped", "probes/grouped"}
    assert found["per_query"].keys() == names | {f"{name}/with_context" for name in names}
    assert found["per_query"]["probes/grouped"] == found["per_query"]["grouped"]
    values = found["per_query"]["alone"]
    assert len(values) == 2 and np.mean(values) == pytest.approx(found["sets"]["alone"]["int8"]["ndcg@10"], abs=1e-6)
    within = found["per_query"]["grouped/with_context"]
    assert np.mean(within) == pytest.approx(found["sets"]["grouped"]["with_context"]["int8"]["ndcg@10"], abs=1e-6)
    bm25 = score_bm25(ALONE, probes)
    assert bm25["probes"]["grouped"].keys() == {"ndcg@10", "recall@100"}
    assert list(bm25["per_query"]) == ["evaluation", "probes/grouped"]


def test_probes_are_read_from_a_folder_if_there_is_one(folder, tmp_path):
    assert read_probes(folder) == {"alone": ALONE, "grouped": GROUPED}
    assert read_probes(tmp_path / "nowhere") == {}


def test_no_text_is_encoded_twice(monkeypatch):
    class Counting(WordEncoder):
        asked = 0

        def encode(self, texts, **options):
            Counting.asked += len(texts)
            return super().encode(texts, **options)

    plain, model = WordEncoder(), CachingEncoder(Counting())
    texts = ["red apple", "sky", "red apple"]
    for _ in range(2):
        found = model.encode(texts, quantization="none")
        np.testing.assert_array_equal(found, plain.encode(texts, quantization="none"))
    assert Counting.asked == 2
    np.testing.assert_array_equal(model.encode(["sky"], dims=8), plain.encode(["sky"], dims=8))
    assert Counting.asked == 2  # other forms and widths come from the same vectors
    model.drop_unused()
    model.encode(["sky"])
    model.drop_unused()
    model.encode(["red apple", "sky"])
    assert Counting.asked == 3  # what one set did not ask for is dropped after it
    monkeypatch.setattr(caching_encoder, "_MOST_BYTES", 2 * 4 * plain.dims)
    Counting.asked = 0
    for _ in range(2):
        found = model.encode(["red apple", "sky", "green pear", "red apple"], quantization="none")
        np.testing.assert_array_equal(
            found, plain.encode(["red apple", "sky", "green pear", "red apple"], quantization="none")
        )
    assert Counting.asked == 2  # what there is no room for is encoded anew


def test_the_table_has_a_line_a_set():
    def entry(value, sets=True):
        scores = {"int8": {"ndcg@10": value}}
        return {**scores, "sets": {"one": scores, "two": {"int8": {"ndcg@10": value / 2}}}} if sets else scores

    bm25 = {"ndcg@10": 0.5, "sets": {"one": {"ndcg@10": 0.7}, "two": {"ndcg@10": 0.3}}}
    lines = format_sets({"bm25": bm25, "pair": entry(0.6)}).splitlines()
    assert lines[1].split() == ["BM25", "pair"]
    assert [line.split() for line in lines[3:]] == [["one", "0.7000", "0.6000"], ["two", "0.3000", "0.3000"]]
    assert format_sets({"pair": entry(0.6, sets=False)}) == ""
    probe = {"pair": {**entry(0.6, sets=False), "probes": {"context": entry(0.2, sets=False)}}}
    assert format_sets(probe).splitlines()[3].split() == ["context", "(probe)", "0.2000"]
