"""Scoring a model, or BM25, on a retrieval set in a BEIR folder.

Texts are encoded once; every quantization is derived from the same pooled vectors. All passages of the set
are ranked together (as ConTEB does), also where a context model encoded them document by document.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.data.io.beir import RetrievalSet, read_beir, set_files, set_folders
from pplx_jax.evaluation.core.benchmark import Part, main_value
from pplx_jax.evaluation.scoring.retrieval_task import RetrievalTask
from pplx_jax.evaluation.scoring.scorers import bm25_scorer, cosine_scorer, means, score
from pplx_jax.evaluation.scoring.set_embeddings import pooled_vectors
from pplx_jax.inference.encoder import Encoder
from pplx_jax.kernels.quantization import Quantization

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
        _REPORTED_AS.get(name, name): means(score(data, cosine_scorer(queries, documents, name), metrics))
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
    return means(score(data, bm25_scorer(data), metrics))


@dataclasses.dataclass(frozen=True)
class FolderBenchmark:
    """A BEIR folder as its one task, or a folder of BEIR folders as a task each (`benchmark.Benchmark`)."""

    name: str
    tasks: Sequence[RetrievalTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        return {"ndcg@10": float(np.mean([main_value(of_task, "ndcg@10") for of_task in parts.values()]))}


def open_folder(folder: str | pathlib.Path) -> FolderBenchmark:
    """The benchmark that a folder is; no set is read yet.

    Raises:
        BadInput: there is no such folder, or it holds no set.
    """
    folder = pathlib.Path(folder)
    read = functools.lru_cache(maxsize=1)(read_beir)  # several settings of one set follow one another
    tasks = [
        RetrievalTask(
            name=path.resolve().name,
            load=functools.partial(read, path),
            revision_of=functools.partial(_digest, path),
        )
        for path in set_folders(folder)
    ]
    return FolderBenchmark(folder.resolve().name, tasks)


def _digest(folder: pathlib.Path) -> str:
    """16 hex digits of the files of a set."""
    digest = hashlib.sha256()
    for path in set_files(folder):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read(folder: str | pathlib.Path | RetrievalSet) -> RetrievalSet:
    return folder if isinstance(folder, RetrievalSet) else read_beir(folder)
