"""Scoring a model, or BM25, on a retrieval set in a BEIR folder.

Texts are encoded once; every quantization is derived from the same pooled vectors. All passages of the set
are ranked together (as ConTEB does), also where a context model encoded them document by document.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pplx_jax.evaluation.pooled import pooled_vectors
from pplx_jax.models.quantization import Quantization, quantize
from pplx_jax.retrieval.beir import RetrievalSet, read_beir
from pplx_jax.retrieval.bm25 import BM25
from pplx_jax.retrieval.encoder import Encoder, load_encoder
from pplx_jax.retrieval.metrics import DEFAULT_METRICS, judge, metrics_of_ranks, relevant_ranks, tie_places
from pplx_jax.retrieval.search import rank_scores, similarity
from pplx_jax.retrieval.trec_run import run_writer

REPORTED_METRICS = ("ndcg@10", "recall@100")
RUN_DEPTH = 1000
_REPORTED_AS = {"tanh": "float"}
_QUERIES_PER_BLOCK = 256

# Scores [Q, N] of the queries in a slice.
Scorer = Callable[[slice], np.ndarray]


def evaluate(
    model: Encoder,
    folder: str | pathlib.Path | RetrievalSet,
    quantization: Sequence[Quantization] = ("tanh", "int8", "binary"),
    *,
    metrics: Iterable[str] = REPORTED_METRICS,
    **encoding: Any,
) -> dict[str, dict[str, float]]:
    """Metrics of a model at each quantization.

    Args:
        model: the encoder.
        folder: a BEIR folder, or the set read from one.
        quantization: compared by cosine ("ubinary" by Hamming distance); "tanh", what INT8 rounds, is
            reported as "float", so that the two differ by the rounding alone.
        metrics: see `retrieval.metrics`.
        **encoding: `context`, `dims`, `truncate` and more of `pooled_vectors`.

    Returns:
        "float", "int8", "binary" -> metric -> value.

    Raises:
        BadInput: the folder cannot be read, or a text is past the model's limit.
    """
    data, metrics = _read(folder), tuple(metrics)
    queries, documents = pooled_vectors(model, data, **encoding)
    return {
        _REPORTED_AS.get(name, name): score(data, cosine_scorer(queries, documents, name), metrics)
        for name in quantization
    }


def evaluate_bm25(
    folder: str | pathlib.Path | RetrievalSet, *, metrics: Iterable[str] = REPORTED_METRICS
) -> dict[str, float]:
    """Metrics of the BM25 baseline.

    Raises:
        BadInput: the folder cannot be read, or the library bm25s is missing.
    """
    data = _read(folder)
    return score(data, bm25_scorer(data), metrics)


def evaluate_task(
    model: str | pathlib.Path | Encoder,
    folder: str | pathlib.Path | RetrievalSet,
    *,
    quantization: Quantization = "int8",
    context: bool = False,
    dims: int | None = None,
    truncate: bool = False,
    run_file: str | pathlib.Path | None = None,
    metrics: Iterable[str] = DEFAULT_METRICS,
) -> dict[str, Any]:
    """One model on one BEIR folder, on request with its ranking as a TREC run file.

    Args:
        model: "bm25", a model folder, or a loaded encoder.
        folder: the BEIR folder, or the set read from one.
        quantization: of the model's vectors.
        context, dims, truncate: see `pooled_vectors`.
        run_file: where to write the best thousand passages of each query.
        metrics: see `retrieval.metrics`.

    Returns:
        {"metrics": {name: value}, "queries": number judged, "documents": number of passages}.

    Raises:
        BadInput: the model or the folder cannot be read, or a text is past the model's limit.
    """
    data = _read(folder)
    if model == "bm25":
        scorer = bm25_scorer(data)
    else:
        encoder = load_encoder(model) if isinstance(model, str | pathlib.Path) else model
        pooled = pooled_vectors(encoder, data, context=context, dims=dims, truncate=truncate)
        scorer = cosine_scorer(*pooled, quantization)
    values = score(data, scorer, metrics, run_file)
    return {"metrics": values, "queries": len(data.query_ids), "documents": len(data.document_ids)}


def cosine_scorer(queries: np.ndarray, documents: np.ndarray, quantization: Quantization) -> Scorer:
    """Scores quantized vectors; the arguments are pooled vectors [Q, d] and [N, d]."""
    quantized_queries, quantized_documents = (
        quantize(queries, quantization),
        quantize(documents, quantization),
    )
    packed = quantization == "ubinary"
    return lambda block: similarity(quantized_queries[block], quantized_documents, packed)


def bm25_scorer(data: RetrievalSet) -> Scorer:
    """Scores by BM25."""
    index = BM25(data.documents)
    return lambda block: index.scores(data.queries[block])


def score(
    data: RetrievalSet, scorer: Scorer, metrics: Iterable[str], run_file: str | pathlib.Path | None = None
) -> dict[str, float]:
    """Metrics of a scorer, block of queries after block, so that memory stays bounded.

    Args:
        data: the set.
        scorer: gives the scores of a slice of its queries.
        metrics: see `retrieval.metrics`.
        run_file: where to write the ranking, if anywhere.
    """
    judgements = judge(data.qrels, data.query_ids, data.document_ids)
    places = tie_places(data.document_ids)
    ranks = []
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(run_writer(run_file, data.document_ids)) if run_file else None
        for begin in range(0, len(data.query_ids), _QUERIES_PER_BLOCK):
            block = slice(begin, begin + _QUERIES_PER_BLOCK)
            scores = scorer(block)
            ranks.append(relevant_ranks(scores, judgements, places, begin))
            if add:
                add(data.query_ids[block], *rank_scores(scores, places, RUN_DEPTH))
    return metrics_of_ranks(np.concatenate(ranks), judgements, metrics)


def _read(folder: str | pathlib.Path | RetrievalSet) -> RetrievalSet:
    return folder if isinstance(folder, RetrievalSet) else read_beir(folder)
