"""BEIR folders as benchmarks: one folder is one task, a folder of them is one task each."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pplx_jax.data.io.beir import read_beir, set_files, set_folders
from pplx_jax.evaluation.core.benchmark import Part, main_value
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask


@dataclasses.dataclass(frozen=True)
class FolderBenchmark:
    """A `benchmark.Benchmark` of BEIR folders; its average is the mean nDCG@10."""

    name: str
    tasks: Sequence[RetrievalTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        return {"ndcg@10": float(np.mean([main_value(of_task, "ndcg@10") for of_task in parts.values()]))}


def open_folder(folder: str | pathlib.Path) -> FolderBenchmark:
    """Returns the benchmark of a folder. No set is read yet.

    Raises:
        BadInput: the folder does not exist.
    """
    folder = pathlib.Path(folder)
    read = functools.lru_cache(maxsize=1)(read_beir)  # consecutive settings use the same set
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
    """Returns 16 hex digits of the SHA-256 of a set's files."""
    digest = hashlib.sha256()
    for path in set_files(folder):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
