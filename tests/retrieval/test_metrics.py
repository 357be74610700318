"""Metrics against numbers computed by hand, by trec_eval, and by a slow implementation that sorts."""

import math

import hypothesis
import numpy as np
import pytest
from helpers import trec_eval
from hypothesis import strategies as st

from pplx_jax.retrieval.metrics import (
    DEFAULT_METRICS,
    judge,
    metrics_per_query,
    relevant_ranks,
    tie_places,
)

NAMES = ("ndcg@10", "ndcg@3", "ndcg", "recall@5", "recall@100", "mrr", "map", "map@5")


def score_metrics(scores, qrels, query_ids, document_ids, names=DEFAULT_METRICS):
    """Means of metrics of a block of scores [queries, documents]."""
    judgements = judge(qrels, query_ids, document_ids)
    ranks = relevant_ranks(scores, judgements, tie_places(document_ids))
    return means(metrics_per_query(ranks, judgements, names))


def query_metrics(run, qrels, names):
    """Metrics of a run, in which the collection of each query is what was retrieved for it."""
    ranks = []
    for query, grades in qrels.items():
        retrieved = run.get(query) or {"": 0.0}
        judgements = judge({query: grades}, [query], list(retrieved))
        scores = np.array([list(retrieved.values())])
        ranks.append(relevant_ranks(scores, judgements, tie_places(list(retrieved))))
    return metrics_per_query(np.concatenate(ranks), judge(qrels, list(qrels), ()), names)


def run_metrics(run, qrels, names=DEFAULT_METRICS):
    return means(query_metrics(run, qrels, names))


def means(values):
    return {name: float(np.mean(of_queries)) for name, of_queries in values.items()}


def slow_metrics(run, qrels, names):
    """Sorts every ranking and walks down it."""
    sums = dict.fromkeys(names, 0.0)
    for query, grades in qrels.items():
        scored = [(float(np.float32(score)), document) for document, score in run.get(query, {}).items()]
        ranking = [document for _, document in sorted(scored, reverse=True)]
        relevant = {document: grade for document, grade in grades.items() if grade > 0}
        ideal = sorted(relevant.values(), reverse=True)
        for name in names:
            kind, _, cutoff = name.partition("@")
            depth = int(cutoff) if cutoff else len(ranking) + len(ideal)
            found = [relevant.get(document, 0) for document in ranking[:depth]]
            if not relevant:
                continue
            if kind == "recall":
                sums[name] += sum(grade > 0 for grade in found) / len(relevant)
            elif kind == "mrr":
                sums[name] += next((1 / rank for rank, grade in enumerate(found, 1) if grade), 0.0)
            elif kind == "map":
                hits = [rank for rank, grade in enumerate(found, 1) if grade]
                sums[name] += sum(count / rank for count, rank in enumerate(hits, 1)) / len(relevant)
            else:
                gains = (sum(g / math.log2(i + 2) for i, g in enumerate(c)) for c in (found, ideal[:depth]))
                gained, best = gains
                sums[name] += gained / best
    return {name: total / len(qrels) for name, total in sums.items()}


def test_by_hand():
    qrels = {"q": {"a": 2, "b": 1, "missing": 1, "zero": 0}}
    run = {"q": {"x": 4.0, "b": 3.0, "zero": 2.0, "a": 1.0}}
    gained = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    expected = {"ndcg@10": gained / ideal, "recall@100": 2 / 3, "mrr": 1 / 2, "map": (1 / 2 + 2 / 4) / 3}
    assert run_metrics(run, qrels) == pytest.approx(expected)


def test_ties_go_to_the_greater_id_and_not_to_the_greater_number():
    qrels = {"q": {"9": 1}}
    tied = {"q": {"10": 1.0, "9": 1.0, "8": 1.0}}
    assert run_metrics(tied, qrels, ["mrr"])["mrr"] == 1.0  # "9" > "8" > "10" as strings
    assert run_metrics(tied, {"q": {"10": 1}}, ["mrr"])["mrr"] == pytest.approx(1 / 3)


def test_scores_that_differ_beyond_single_precision_are_ties():
    run = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}
    assert run_metrics(run, {"q": {"b": 1}}, ["mrr"])["mrr"] == 1.0


def test_every_judged_query_counts():
    qrels = {"found": {"a": 1}, "absent from the run": {"a": 1}, "nothing relevant": {"a": 0}}
    metrics = run_metrics({"found": {"a": 1.0}, "unjudged": {"a": 1.0}}, qrels)
    assert set(metrics.values()) == {1 / 3}


def test_a_score_of_minus_infinity_is_not_retrieved():
    qrels = {"q": {"b": 1}}
    assert score_metrics(np.array([[-np.inf, -np.inf]]), qrels, ["q"], ["a", "b"]) == dict.fromkeys(DEFAULT_METRICS, 0)
    assert score_metrics(np.array([[-np.inf, -3e38]]), qrels, ["q"], ["a", "b"]) == dict.fromkeys(DEFAULT_METRICS, 1)


def test_values_of_trec_eval():
    """Expected values printed by pytrec_eval-terrier 0.5.11, which wraps trec_eval 9."""
    qrels = {"q1": {"d1": 3, "d2": 1, "d5": 0, "d7": 2}, "q2": {"d3": 1, "d4": -1, "é": 2}}
    run = {
        "q1": {"d1": 0.5, "d2": 0.9, "d3": 0.9, "d5": 0.9, "d6": 0.5, "d7": 0.1},
        "q2": {"d3": 0.2, "é": 0.2, "d4": 0.2, "z": 0.2},
    }
    expected = {
        "ndcg@3": 0.43259426565442527,
        "ndcg@10": 0.7111070158196164,
        "recall@5": 0.8333333333333333,
        "mrr": 0.6666666666666666,
        "map": 0.5805555555555556,
        "map@5": 0.49722222222222223,
    }
    assert run_metrics(run, qrels, expected) == pytest.approx(expected, abs=1e-12)


TREC_NAMES = ("ndcg@10", "ndcg", "recall@5", "recall@1000", "mrr", "map", "map@5", "precision@5", "hit@5")
GRADES = st.dictionaries(st.sampled_from([f"d{number}" for number in range(14)]), st.integers(-1, 3), min_size=1)
# Few scores, so that most documents tie, some of them only in single precision.
SCORES = st.dictionaries(
    st.sampled_from([f"d{number}" for number in range(12)]), st.sampled_from([0.5, 0.1, 0.1 + 1e-12])
)


@hypothesis.given(st.lists(st.tuples(GRADES, SCORES), min_size=1, max_size=4))
def test_trec_eval_agrees_query_by_query(queries):
    qrels = {f"q{number}": grades for number, (grades, _) in enumerate(queries)}
    run = {f"q{number}": scores for number, (_, scores) in enumerate(queries) if scores}
    own = query_metrics(run, qrels, [*TREC_NAMES, "completeness@5"])
    theirs = trec_eval.query_metrics(run, qrels, TREC_NAMES)
    for name in TREC_NAMES:
        assert own[name] == pytest.approx(theirs[name], abs=1e-6), name
    np.testing.assert_array_equal(own["completeness@5"], theirs["recall@5"] == 1)


@pytest.mark.parametrize("seed", range(20))
def test_slow_implementation_agrees(seed):
    rng = np.random.default_rng(seed)
    ids = [f"{number}{'é' * (number % 3)}" for number in rng.permutation(60)]
    queries = [f"q{number}" for number in range(7)]
    qrels = {q: {str(d): int(rng.integers(-1, 4)) for d in rng.choice(ids, 12, replace=False)} for q in queries}
    scores = rng.integers(0, 5, (7, 60)) / 7 + rng.integers(0, 2, (7, 60)) * 1e-10
    run = {q: dict(zip(ids, row.tolist(), strict=True)) for q, row in zip(queries, scores, strict=True)}
    slow = slow_metrics(run, qrels, NAMES)
    assert score_metrics(scores, qrels, queries, ids, NAMES) == pytest.approx(slow, abs=1e-12)
    assert run_metrics(run, qrels, NAMES) == pytest.approx(slow, abs=1e-12)
    partial = {q: dict(list(ranked.items())[:9]) for q, ranked in run.items()}
    assert run_metrics(partial, qrels, NAMES) == pytest.approx(slow_metrics(partial, qrels, NAMES), abs=1e-12)


def test_blocks_of_queries_give_the_ranks_of_the_whole():
    rng = np.random.default_rng(0)
    ids, queries = [str(n) for n in range(40)], [str(n) for n in range(11)]
    qrels = {q: {str(d): 1 for d in rng.choice(40, rng.integers(0, 6), replace=False)} for q in queries}
    scores = rng.integers(0, 9, (11, 40)).astype(np.float32)
    judgements, places = judge(qrels, queries, ids), tie_places(ids)
    blocks = [relevant_ranks(scores[begin : begin + 4], judgements, places, begin) for begin in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(blocks), relevant_ranks(scores, judgements, places))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        score_metrics(np.array([[np.nan]]), {"q": {"d": 1}}, ["q"], ["d"])
    with pytest.raises(ValueError, match="every judged query counts"):
        score_metrics(np.zeros((1, 1)), {"q": {"d": 1}, "p": {"d": 1}}, ["q"], ["d"])
    with pytest.raises(ValueError, match="unknown metric 'precision'"):
        run_metrics({}, {"q": {"d": 1}}, ["precision"])
    with pytest.raises(ValueError, match="unknown metric 'ndcg@0'"):
        run_metrics({}, {"q": {"d": 1}}, ["ndcg@0"])
