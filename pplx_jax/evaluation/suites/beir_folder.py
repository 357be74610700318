"""BEIR folders as benchmarks: one folder is one task, a folder of them or a pattern is one task each."""

import dataclasses
import functools
import glob
import pathlib
from collections.abc import Mapping, Sequence

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.beir import read_beir, set_files, set_folders
from pplx_jax.data.io.input_files import matching_paths
from pplx_jax.evaluation.core.benchmark import Part, mean_over_tasks
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask
from pplx_jax.evaluation.core.revisions import revision_of_files


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
        folder: a BEIR folder, a folder of them, or a pattern that matches such folders.
        split: reads qrels/SPLIT.tsv of a set that has no qrels.tsv.

    Raises:
        BadInput: there is no such folder, or two sets have the same name.
    """
    pattern = glob.has_magic(str(folder)) and not as_path(folder).exists()
    matches = [local_copy(match) for match in matching_paths(folder) if match.is_dir() or not pattern]
    if not matches:
        raise BadInput(f"{folder}: only files match this pattern; give one of BEIR folders")
    folders = {path.resolve(): path for match in matches for path in set_folders(match)}
    read = functools.lru_cache(maxsize=1)(read_beir)  # consecutive settings use the same set
    tasks = [
        RetrievalTask(
            name=resolved.name,
            load=functools.partial(read, path, split),
            revision_of=functools.partial(_revision, path, split),
            split=split,
        )
        for resolved, path in folders.items()
    ]
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{folder} has two sets of the name {twice[0]}; their results would be mixed up, so rename one")
    return FolderBenchmark("/".join(as_path(folder).parts[-2:]) if pattern else matches[0].resolve().name, tasks)


def _revision(folder: pathlib.Path, split: str) -> str:
    return revision_of_files(set_files(folder, split))
