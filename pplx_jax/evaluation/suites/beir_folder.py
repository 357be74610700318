"""BEIR folders as benchmarks: one folder is one task, a folder of them is one task each."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.beir import read_beir, set_files, set_folders
from pplx_jax.evaluation.core.benchmark import Part, mean_over_tasks, revision_of_files
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask


@dataclasses.dataclass(frozen=True)
class FolderBenchmark:
    """A `benchmark.Benchmark` of BEIR folders; its average is the mean nDCG@10."""

    name: str
    tasks: Sequence[RetrievalTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        return {"ndcg@10": mean_over_tasks(parts, "ndcg@10")}


def open_folder(folder: str | pathlib.Path, split: str = "test") -> FolderBenchmark:
    """Returns the benchmark of a folder. No set is read yet.

    Args:
        folder: a BEIR folder, or a folder of them.
        split: reads qrels/SPLIT.tsv of a set that has no qrels.tsv.

    Raises:
        BadInput: the folder does not exist.
    """
    folder = local_copy(as_path(folder))
    read = functools.lru_cache(maxsize=1)(read_beir)  # consecutive settings use the same set
    tasks = [
        RetrievalTask(
            name=path.resolve().name,
            load=functools.partial(read, path, split),
            revision_of=functools.partial(_revision, path, split),
            split=split,
        )
        for path in set_folders(folder)
    ]
    return FolderBenchmark(folder.resolve().name, tasks)


def _revision(folder: pathlib.Path, split: str) -> str:
    return revision_of_files(set_files(folder, split))
