"""Scores the documents of a retrieval set for every query, ranks them and computes metrics per query."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
from absl import logging

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.trec_run import run_writer
from pplx_jax.kernels.quantization import Quantization, quantize, zero_rows
from pplx_jax.retrieval.bm25 import BM25
from pplx_jax.retrieval.exact_search import rank_scores, similarity
from pplx_jax.retrieval.metrics import NOT_RETRIEVED, judge, metrics_per_query, relevant_ranks, tie_places

RUN_DEPTH = 1000  # documents of a ranking, in metrics and in run files
OwnDocument = Literal["keep", "drop"]
_SCORES_PER_BLOCK = 1 << 24
_QUERIES_PER_BLOCK = 256

# Maps a slice of the queries to their scores [Q, N], -inf for a document that is not retrieved.
Scorer = Callable[[slice], np.ndarray]


def cosine_scorer(queries: np.ndarray, documents: np.ndarray, quantization: Quantization) -> Scorer:
    """Returns a scorer that quantizes pooled vectors [Q, d] and [N, d] and compares them.

    A zero vector belongs to an empty text, which retrieves nothing and is never retrieved.
    """
    empty_queries, empty_documents = map(zero_rows, (queries, documents))
    quantized_queries, quantized_documents = (
        quantize(queries, quantization),
        quantize(documents, quantization),
    )
    packed = quantization == "ubinary"

    def scores(block: slice) -> np.ndarray:
        found = similarity(quantized_queries[block], quantized_documents, packed)
        found[empty_queries[block]] = -np.inf
        found[:, empty_documents] = -np.inf
        return found

    return scores


def bm25_scorer(data: RetrievalSet) -> Scorer:
    """Returns a BM25 scorer."""
    index = _bm25(tuple(data.documents))
    return lambda block: index.scores(data.queries[block])


@functools.lru_cache(maxsize=1)  # consecutive sets may share their documents
def _bm25(documents: tuple[str, ...]) -> BM25:
    return BM25(documents)


def queries_without_own_document(
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    own_document: OwnDocument | None,
) -> frozenset[str]:
    """Returns the queries for which the document with their own id is no hit, as in ArguAna.

    Args:
        queries: id -> text.
        documents: id -> text, at least of the documents with the id of a query.
        qrels: query id -> document id -> grade.
        own_document: "drop" for all such documents, "keep" for none. None drops those that contain the text of their
            query, in a set where no query has its own as a relevant document. So equal numbers of a query and of an
            unrelated document mean nothing.
    """
    own = frozenset(query for query in queries if query in documents)
    if own_document is not None:
        return own if own_document == "drop" else frozenset()
    if any(qrels[query].get(query, 0) > 0 for query in own):
        return frozenset()
    found = frozenset(query for query in own if _words(queries[query]) in _words(documents[query]))
    if found:
        logging.warning("%d queries are documents too and do not find themselves (--own_document keep)", len(found))
    return found


def _words(text: str) -> str:
    return f" {' '.join(text.split())} "


def score(
    data: RetrievalSet,
    scorer: Scorer,
    metrics: Iterable[str],
    run_file: str | pathlib.Path | None = None,
    own_document: OwnDocument | None = None,
) -> dict[str, np.ndarray]:
    """Returns the metrics of a scorer, over the best `RUN_DEPTH` documents of each query.

    Queries are scored in blocks, so memory stays bounded.

    Args:
        data: the set.
        scorer: returns the scores of a slice of the queries.
        metrics: see `retrieval.metrics`.
        run_file: the TREC run file to write; None for no file.
        own_document: see `queries_without_own_document`.

    Returns:
        metric name -> float64 [queries], in the order of `data.query_ids`.
    """
    judgements = judge(data.qrels, data.query_ids, data.document_ids)
    places = tie_places(data.document_ids)
    column = {document: place for place, document in enumerate(data.document_ids)}
    queries = dict(zip(data.query_ids, data.queries, strict=True))
    documents = dict(zip(data.document_ids, data.documents, strict=True))
    dropped = queries_without_own_document(queries, documents, data.qrels, own_document)
    blocks = []
    step = min(max(_SCORES_PER_BLOCK // len(data.document_ids), 1), _QUERIES_PER_BLOCK)
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(run_writer(run_file, data.document_ids)) if run_file else None
        for begin in range(0, len(data.query_ids), step):
            block = slice(begin, begin + step)
            scores = scorer(block)
            for row, query in enumerate(data.query_ids[block]):
                if query in dropped:
                    scores[row, column[query]] = -np.inf
            blocks.append(relevant_ranks(scores, judgements, places, begin))
            if add:
                add(data.query_ids[block], *rank_scores(scores, places, RUN_DEPTH))
    ranks = np.concatenate(blocks)
    return metrics_per_query(np.where(ranks <= RUN_DEPTH, ranks, NOT_RETRIEVED), judgements, metrics)


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean over queries of every metric."""
    return {name: float(np.mean(of_queries)) for name, of_queries in values.items()}
