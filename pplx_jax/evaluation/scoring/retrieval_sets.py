"""Scores a model or BM25 on one retrieval set, or on several: each set's metrics and their mean.

Texts are encoded once, and every quantization is derived from the same pooled vectors. All passages of a set are ranked
together (as in ConTEB), also if a context model encoded them document by document.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.beir import RetrievalSet, read_beir, set_folders
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.evaluation.scoring.scorers import bm25_scorer, cosine_scorer, means, score
from pplx_jax.evaluation.scoring.set_embeddings import embed_set
from pplx_jax.inference.encoder import Encoder
from pplx_jax.kernels.quantization import Quantization

SETS = "sets"
REPORTED_METRICS = ("ndcg@10", "recall@100")
_REPORTED_AS = {"tanh": "float"}


def evaluate(
    model: Encoder,
    folder: str | pathlib.Path | RetrievalSet,
    quantization: Sequence[Quantization] = ("tanh", "int8", "binary"),
    *,
    metrics: Iterable[str] = REPORTED_METRICS,
    **encoding: Any,
) -> dict[str, dict[str, float]]:
    """Returns the metrics of a model at each quantization.

    Args:
        model: the encoder.
        folder: a BEIR folder, or a set that was read from one.
        quantization: of the vectors, compared by cosine ("ubinary" by Hamming distance). "tanh" is what INT8 rounds. It
            is reported as "float", so that "float" and "int8" differ by the rounding only.
        metrics: see `retrieval.metrics`.
        **encoding: `context`, `dims`, `truncate` and more of `embed_set`.

    Returns:
        "float", "int8", "binary" -> metric -> value.

    Raises:
        BadInput: the folder cannot be read, or a text is over the model's limit.
    """
    data, metrics = _read(folder), tuple(metrics)
    queries, documents = embed_set(model, data, **encoding)
    return {
        _REPORTED_AS.get(name, name): means(score(data, cosine_scorer(queries, documents, name), metrics))
        for name in quantization
    }


def evaluate_bm25(
    folder: str | pathlib.Path | RetrievalSet, *, metrics: Iterable[str] = REPORTED_METRICS
) -> dict[str, float]:
    """Returns the metrics of the BM25 baseline.

    Raises:
        BadInput: the folder cannot be read, or the package bm25s is not installed.
    """
    data = _read(folder)
    return means(score(data, bm25_scorer(data), metrics))


def read_sets(folder: pathlib.Path) -> dict[str, RetrievalSet] | RetrievalSet:
    """Reads a BEIR folder as one set, or a folder of BEIR folders as sets by name.

    Raises:
        BadInput: a set cannot be read.
    """
    folder = local_copy(as_path(folder))
    inner = set_folders(folder)
    return read_beir(folder) if inner == [folder] else {path.name: read_beir(path) for path in inner}


def score_sets(
    data: Mapping[str, RetrievalSet] | RetrievalSet, score: Callable[[RetrievalSet], Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the scores of one set. For several sets, returns the mean of each score, and each set's under "sets".

    Args:
        data: what `read_sets` returned.
        score: returns nested scores of a set, with the same keys for each set.
    """
    if isinstance(data, RetrievalSet):
        return dict(score(data))
    scores = {name: dict(score(one)) for name, one in data.items()}
    return {**_mean(list(scores.values())), SETS: scores}


def score_model(
    model: Encoder, data: Mapping[str, RetrievalSet] | RetrievalSet, *, contextual: bool = False, **size: Any
) -> dict[str, Any]:
    """Returns float, INT8 and binary scores. Passages are encoded alone and cut at the model's limit.

    Args:
        model: the encoder.
        data: what `read_sets` returned.
        contextual: whether to add "with_context" and "without_context". They are equal for a set whose passages are
            separate documents.
        **size: `chunks_per_document`, `tokens_per_document` of `embed_set`.
    """
    cached = CachingEncoder(model)

    def score(one: RetrievalSet) -> dict[str, Any]:
        alone = evaluate(cached, one, truncate=True)
        if not contextual:
            return alone
        within = evaluate(cached, one, context=True, truncate=True, **size) if one.has_context else alone
        return {**alone, "with_context": within, "without_context": alone}

    return score_sets(data, score)


def _read(folder: str | pathlib.Path | RetrievalSet) -> RetrievalSet:
    return folder if isinstance(folder, RetrievalSet) else read_beir(folder)


def _mean(scores: Sequence[Any]) -> Any:
    if isinstance(scores[0], Mapping):
        return {name: _mean([one[name] for one in scores]) for name in scores[0]}
    return float(np.mean(scores))
