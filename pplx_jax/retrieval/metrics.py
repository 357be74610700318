"""Retrieval metrics that agree with trec_eval number for number.

Every metric here is a function of the ranks of the relevant documents alone, and a rank is a count: the
documents that score higher, plus those that tie and precede by id. So nothing is sorted, and a block of
scores is judged by a few comparisons a relevant document.

As trec_eval does: scores are compared in single precision, ties are broken by document id, descending (by
code point, which is the order of UTF-8 bytes); a grade of 1 or more is relevant and is its own gain; every
query of the judgements counts, also one with nothing retrieved or nothing relevant (0).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

DEFAULT_METRICS = ("ndcg@10", "recall@100", "mrr", "map")
NOT_RETRIEVED = np.iinfo(np.int64).max
_PAIRS_PER_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Judgements:
    """The relevant (query, document) pairs as arrays, ordered by query.

    Attributes:
        query: int64 [J], row of the query.
        document: int64 [J], column of the document; -1 for one that is not in the collection, hence never
            retrieved.
        gain: int64 [J], the grade, 1 or more.
        queries: number of judged queries, those without any relevant document included.
    """

    query: np.ndarray
    document: np.ndarray
    gain: np.ndarray
    queries: int


def tie_places(ids: Sequence[str]) -> np.ndarray:
    """Returns int64 [N]: the place of every document among equals, 0 for the greatest id."""
    descending = sorted(range(len(ids)), key=lambda row: ids[row], reverse=True)
    places = np.empty(len(ids), np.int64)
    places[descending] = np.arange(len(ids))
    return places


def judge(qrels: Mapping[str, Mapping[str, int]], query_ids: Sequence[str], document_ids: Sequence[str]) -> Judgements:
    """Lays qrels out as arrays over the given order of queries and documents.

    Args:
        qrels: query id -> document id -> grade.
        query_ids: the judged queries, one a row of the scores; each must be in `qrels`, and all of `qrels`
            must be here.
        document_ids: the collection, one a column of the scores.

    Raises:
        ValueError: the queries are not exactly those of the judgements.
    """
    if len(query_ids) != len(qrels) or any(query not in qrels for query in query_ids):
        raise ValueError("query_ids must be exactly the queries of qrels: every judged query counts")
    column = {document: place for place, document in enumerate(document_ids)}
    pairs = [
        (row, column.get(document, -1), grade)
        for row, query in enumerate(query_ids)
        for document, grade in qrels[query].items()
        if grade > 0
    ]
    query, document, gain = np.array(pairs, np.int64).reshape(-1, 3).T
    return Judgements(query, document, gain, len(query_ids))


def relevant_ranks(scores: np.ndarray, judgements: Judgements, places: np.ndarray, first_query: int = 0) -> np.ndarray:
    """Ranks the relevant documents of a block of queries.

    Args:
        scores: [Q, N], greater is better; row r belongs to query `first_query + r`.
        judgements: pairs of all queries; those outside the block are left out of the result.
        places: int64 [N] from `tie_places`.
        first_query: the query of the block's first row, so that blocks can be judged one after another.

    Returns:
        int64 [j], rank from 1 of every relevant pair of these queries, in the order of `judgements`.

    Raises:
        ValueError: a score is not a number.
    """
    scores = np.asarray(scores, np.float32)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank")
    begin, end = np.searchsorted(judgements.query, (first_query, first_query + len(scores)))
    ranks = np.full(end - begin, NOT_RETRIEVED)
    for start in range(begin, end, _PAIRS_PER_BLOCK):
        pairs = slice(start, min(start + _PAIRS_PER_BLOCK, end))
        column = judgements.document[pairs, None]
        rows = scores[judgements.query[pairs] - first_query]
        own = np.take_along_axis(rows, column, axis=1)
        ahead = (rows > own) | ((rows == own) & (places < places[column]))
        found = np.where(column[:, 0] >= 0, 1 + np.count_nonzero(ahead, axis=1), NOT_RETRIEVED)
        ranks[pairs.start - begin : pairs.stop - begin] = found
    return ranks


def metrics_per_query(
    ranks: np.ndarray, judgements: Judgements, names: Iterable[str] = DEFAULT_METRICS
) -> dict[str, np.ndarray]:
    """The values that means, intervals and tests are made of.

    Args:
        ranks: int64 [J], rank from 1 of every pair of `judgements`, NOT_RETRIEVED where it was not found.
        judgements: the pairs.
        names: "ndcg", "recall", "mrr", "map", "hit" (anything relevant found) or "completeness" (all of it found;
            toolret/eval.py of mangopy/tool-retrieval-benchmark), each with an optional "@k"; "precision@k".

    Returns:
        name -> float64 [queries] in [0, 1].

    Raises:
        ValueError: an unknown name, or no queries.
    """
    if judgements.queries == 0:
        raise ValueError("no judged queries")
    return {name: _per_query(name, ranks, judgements) for name in names}


def metrics_of_ranks(
    ranks: np.ndarray, judgements: Judgements, names: Iterable[str] = DEFAULT_METRICS
) -> dict[str, float]:
    """Means of `metrics_per_query` over all judged queries, in [0, 1]."""
    return {name: float(np.mean(values)) for name, values in metrics_per_query(ranks, judgements, names).items()}


def score_metrics(
    scores: np.ndarray,
    qrels: Mapping[str, Mapping[str, int]],
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    names: Iterable[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Metrics of a whole score block [Q, N]; see `judge` for the arguments."""
    judgements = judge(qrels, query_ids, document_ids)
    ranks = relevant_ranks(scores, judgements, tie_places(document_ids))
    return metrics_of_ranks(ranks, judgements, names)


def run_metrics(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    names: Iterable[str] = DEFAULT_METRICS,
) -> dict[str, float]:
    """Metrics of a run (query id -> document id -> score), in which a document left out was not retrieved."""
    return {name: float(np.mean(values)) for name, values in query_metrics(run, qrels, names).items()}


def query_metrics(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    names: Iterable[str] = DEFAULT_METRICS,
) -> dict[str, np.ndarray]:
    """What `run_metrics` gives the means of: name -> float64 [queries], in the order of `qrels`."""
    query_ids = list(qrels)
    ranks = []
    for query in query_ids:
        retrieved = {document: float(np.float32(score)) for document, score in run.get(query, {}).items()}
        order = sorted(retrieved, key=lambda document: (retrieved[document], document), reverse=True)
        place = {document: rank for rank, document in enumerate(order, start=1)}
        relevant = (document for document, grade in qrels[query].items() if grade > 0)
        ranks += [place.get(document, NOT_RETRIEVED) for document in relevant]
    return metrics_per_query(np.array(ranks, np.int64), judge(qrels, query_ids, ()), names)


def _per_query(name: str, ranks: np.ndarray, judgements: Judgements) -> np.ndarray:
    """Values [queries] of one metric."""
    match = re.fullmatch(r"(ndcg|recall|mrr|map|hit|completeness|precision)(?:@([1-9]\d*))?", name)
    if match is None or name == "precision":
        known = "ndcg, recall, mrr, map, hit or completeness with an optional @k, or precision@k"
        raise ValueError(f"unknown metric {name!r}: {known}")
    cutoff = int(match[2]) if match[2] else NOT_RETRIEVED - 1
    query, queries = judgements.query, judgements.queries
    found = ranks <= cutoff

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=values, minlength=queries)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(queries), where=whole > 0)

    relevant = np.bincount(query, minlength=queries)
    match match[1]:
        case "recall":
            return share(total(found), relevant)
        case "precision":
            return total(found) / cutoff
        case "hit":
            return np.sign(total(found))
        case "completeness":
            return (share(total(found), relevant) == 1).astype(float)
        case "mrr":
            best = np.zeros(queries)
            np.maximum.at(best, query, np.where(found, 1.0 / ranks, 0.0))
            return best
        case "map":
            precision = np.where(found, _place_within_query(ranks, query) / ranks, 0.0)
            return share(total(precision), relevant)
    ideal_rank = _place_within_query(-judgements.gain, query)
    ideal = np.where(ideal_rank <= cutoff, judgements.gain / np.log2(ideal_rank + 1.0), 0.0)
    gained = np.where(found, judgements.gain / np.log2(ranks + 1.0), 0.0)
    return share(total(gained), total(ideal))


def _place_within_query(keys: np.ndarray, query: np.ndarray) -> np.ndarray:
    """int64 [J]: place from 1 of every pair among its query's pairs, ordered by key; `query` is ascending."""
    order = np.lexsort((keys, query))
    places = np.empty(len(keys), np.int64)
    places[order] = np.arange(len(keys)) - np.searchsorted(query, query) + 1
    return places
