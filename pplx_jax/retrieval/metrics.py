"""Retrieval metrics with the values of trec_eval.

trec_eval itself takes a dictionary of scores per query; this takes blocks of scores [queries, documents] and never
sorts them. Every metric here depends only on the ranks of the relevant documents, and a rank is a count: the documents
with a higher score, plus those with an equal score that precede by id.

As in trec_eval, scores are compared in single precision; ties are broken by document id, descending (by code point,
the order of UTF-8 bytes); a grade of 1 or more is relevant and is the gain; every query of the judgements counts, with
0 if nothing relevant is retrieved.
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
        document: int64 [J], column of the document; -1 if it is not in the collection and so never retrieved.
        gain: int64 [J], the grade, 1 or more.
        queries: number of judged queries, including those without a relevant document.
    """

    query: np.ndarray
    document: np.ndarray
    gain: np.ndarray
    queries: int


def tie_places(ids: Sequence[str]) -> np.ndarray:
    """Returns int64 [N]: the place of each document among documents of equal score, 0 for the greatest id."""
    descending = sorted(range(len(ids)), key=lambda row: ids[row], reverse=True)
    places = np.empty(len(ids), np.int64)
    places[descending] = np.arange(len(ids))
    return places


def judge(qrels: Mapping[str, Mapping[str, int]], query_ids: Sequence[str], document_ids: Sequence[str]) -> Judgements:
    """Returns qrels as arrays over the given order of queries and documents.

    Args:
        qrels: query id -> document id -> grade.
        query_ids: the judged queries, one per row of the scores: exactly the queries of `qrels`.
        document_ids: the collection, one per column of the scores.

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
    """Returns the ranks of the relevant documents of a block of queries.

    Args:
        scores: [Q, N], greater is better, -inf if the document is not retrieved; row r belongs to query
            `first_query + r`.
        judgements: pairs of all queries; the result has only those of the block.
        places: int64 [N] from `tie_places`.
        first_query: the query of the block's first row.

    Returns:
        int64 [j], rank from 1 of every relevant pair of these queries, in the order of `judgements`; NOT_RETRIEVED for
        a document that is not retrieved.

    Raises:
        ValueError: a score is NaN.
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
        retrieved = (column[:, 0] >= 0) & (own[:, 0] > -np.inf)
        found = np.where(retrieved, 1 + np.count_nonzero(ahead, axis=1), NOT_RETRIEVED)
        ranks[pairs.start - begin : pairs.stop - begin] = found
    return ranks


def metrics_per_query(
    ranks: np.ndarray, judgements: Judgements, names: Iterable[str] = DEFAULT_METRICS
) -> dict[str, np.ndarray]:
    """Returns every metric query by query.

    Args:
        ranks: int64 [J], rank from 1 of every pair of `judgements`, NOT_RETRIEVED if it was not found.
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


def _per_query(name: str, ranks: np.ndarray, judgements: Judgements) -> np.ndarray:
    """Returns the values [queries] of one metric."""
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
    """Returns int64 [J]: place from 1 of every pair among its query's pairs, by key; `query` is ascending."""
    order = np.lexsort((keys, query))
    places = np.empty(len(keys), np.int64)
    places[order] = np.arange(len(keys)) - np.searchsorted(query, query) + 1
    return places
