"""Scores a model or BM25 on one retrieval set, or on several: each set's metrics and their mean.

Probes are further sets that each ask one question about a model, such as whether it uses context. They are in no mean.

Texts are encoded once, and every quantization is derived from the same pooled vectors. All passages of a set are ranked
together (as in ConTEB), also if a context model encoded them document by document.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

SETS, PROBES, PER_QUERY = "sets", "probes", "per_query"
EVALUATION = "evaluation"  # the name of a set that is alone
WITH_CONTEXT = "with_context"
MAIN_METRIC = "ndcg@10"
REPORTED_METRICS = (MAIN_METRIC, "recall@100")
_REPORTED_AS = {"tanh": "float"}


def evaluate_set(
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
        **encoding: `context`, `dims`, `overflow` and more of `embed_set`.

    Returns:
        "float", "int8", "binary" -> metric -> value.

    Raises:
        BadInput: the folder cannot be read, or a text is over the model's limit.
    """
    values = _evaluate_queries(model, _read(folder), quantization, tuple(metrics), **encoding)
    return {name: means(of_queries) for name, of_queries in values.items()}


def _evaluate_queries(
    model: Encoder,
    data: RetrievalSet,
    quantization: Sequence[Quantization] = ("tanh", "int8", "binary"),
    metrics: Sequence[str] = REPORTED_METRICS,
    **encoding: Any,
) -> dict[str, dict[str, np.ndarray]]:
    queries, documents = embed_set(model, data, **encoding)
    return {
        _REPORTED_AS.get(name, name): score(data, cosine_scorer(queries, documents, name), metrics)
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


def read_probes(folder: pathlib.Path) -> dict[str, RetrievalSet]:
    """Reads a folder of BEIR folders as sets by name; {} if there is no such folder. Raises BadInput as `read_sets`."""
    folder = as_path(folder)
    return {path.name: read_beir(path) for path in set_folders(local_copy(folder))} if folder.exists() else {}


def score_sets(
    data: Mapping[str, RetrievalSet] | RetrievalSet,
    score_set: Callable[[RetrievalSet], Mapping[str, Any]],
    probes: Mapping[str, RetrievalSet] | None = None,
) -> dict[str, Any]:
    """Returns the scores of one set. For several sets, returns the mean of each score, and each set's under "sets".

    Args:
        data: what `read_sets` returned.
        score_set: returns the scores of a set, or nested scores, with the same keys for each set: arrays with a value
            for each query, or numbers.
        probes: what `read_probes` returned. Their scores are under "probes".

    Returns:
        The scores, and under "per_query" INT8 nDCG@10 of each query by set, "probes/NAME" for a probe, with
        "/with_context" after the name if passages are in their documents.
    """
    sets = {EVALUATION: data} if isinstance(data, RetrievalSet) else data
    places = {**sets, **{f"{PROBES}/{name}": probe for name, probe in (probes or {}).items()}}
    values = {name: score_set(one) for name, one in places.items()}
    scores = {name: _mean([found]) for name, found in values.items()}
    of_sets = {name: scores[name] for name in sets}
    total = of_sets[EVALUATION] if isinstance(data, RetrievalSet) else {**_mean([*of_sets.values()]), SETS: of_sets}
    of_probes = {name: scores[f"{PROBES}/{name}"] for name in probes or ()}
    per_query = {name: found for place, of_set in values.items() for name, found in _main(place, of_set)}
    extra = {PROBES: of_probes, PER_QUERY: per_query}
    return {**total, **{name: found for name, found in extra.items() if found}}


def _main(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Yields (name of the set, main metric of each query), also with context."""
    found = values.get("int8", values).get(MAIN_METRIC)
    if isinstance(found, np.ndarray):
        yield name, np.round(found, 6).tolist()
    if WITH_CONTEXT in values:
        yield from _main(f"{name}/{WITH_CONTEXT}", values[WITH_CONTEXT])


def score_bm25(
    data: Mapping[str, RetrievalSet] | RetrievalSet, probes: Mapping[str, RetrievalSet] | None = None
) -> dict[str, Any]:
    """Returns the scores of the BM25 baseline as `score_sets`. Raises BadInput as `evaluate_bm25`."""
    return score_sets(data, lambda one: score(one, bm25_scorer(one), REPORTED_METRICS), probes)


def score_model(
    model: Encoder,
    data: Mapping[str, RetrievalSet] | RetrievalSet,
    probes: Mapping[str, RetrievalSet] | None = None,
    *,
    contextual: bool = False,
    **size: Any,
) -> dict[str, Any]:
    """Returns float, INT8 and binary scores as `score_sets`. Passages are encoded alone and cut at the model's limit.

    Args:
        model: the encoder.
        data: what `read_sets` returned.
        probes: what `read_probes` returned.
        contextual: whether to add "with_context" and "without_context". They are equal for a set whose passages are
            separate documents.
        **size: `chunks_per_document`, `tokens_per_document` of `embed_set`.
    """
    cached = CachingEncoder(model)

    def of_set(one: RetrievalSet) -> dict[str, Any]:
        alone = _evaluate_queries(cached, one, overflow="truncate")
        if not contextual:
            return alone
        within = _evaluate_queries(cached, one, context=True, overflow="truncate", **size) if one.has_context else alone
        return {**alone, WITH_CONTEXT: within, "without_context": alone}

    return score_sets(data, of_set, probes)


def _read(folder: str | pathlib.Path | RetrievalSet) -> RetrievalSet:
    return folder if isinstance(folder, RetrievalSet) else read_beir(folder)


def _mean(scores: Sequence[Any]) -> Any:
    """Returns the mean of numbers, or of one array, or of nested mappings of them."""
    if isinstance(scores[0], Mapping):
        return {name: _mean([one[name] for one in scores]) for name in scores[0]}
    return float(np.mean(scores))
