"""The protocol of a benchmark: tasks that score one system each, and the averages that its paper reports.

To add a benchmark, write one class with `name`, `tasks` and `averages` in your own package; see `evaluation.registry`
for how the command line and gin find it. `core.retrieval_task.RetrievalTask` is a ready-made task for one retrieval
set.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from pplx_jax.evaluation.scoring.system import System


@dataclasses.dataclass(frozen=True)
class Part:
    """The metrics of one split and subset of a task.

    Attributes:
        split: such as "test".
        subset: a language, a length or a data set; "default" if the task has only one.
        metrics: metric name -> mean over all judged queries, in [0, 1].
        queries: number of judged queries.
        documents: number of ranked documents.
        query_ids: ids of the judged queries.
        per_query: metric name -> float [queries], the values that `metrics` averages. Confidence intervals and paired
            tests need them. Empty if the benchmark's own code keeps only means.
        lengths: int64 [queries], characters of each query's longest relevant document; empty if unknown.
        shares_queries: whether other parts of the task have the same queries under the same ids.
    """

    split: str
    subset: str
    metrics: Mapping[str, float]
    queries: int
    documents: int
    query_ids: Sequence[str] = ()
    per_query: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lengths: Sequence[int] | np.ndarray = ()
    shares_queries: bool = False


class Task(Protocol):
    """One data set of a benchmark.

    A task may define more:
        revision: str that changes when the data or the protocol changes. Stored results of another revision are not
            reused.
        within(folder): returns the task configured to keep its own files in the results folder.
        with_run_file(path): returns the task configured to write its ranking there (`--run_file`).
        with_own_document(choice): returns the task that keeps or drops the document with the id of a query
            (`--own_document`).

    Attributes:
        name: unique within the benchmark.
        main_metric: the metric used in averages.
    """

    @property
    def name(self) -> str: ...

    @property
    def main_metric(self) -> str: ...

    def evaluate(self, system: System) -> Sequence[Part]:
        """Loads the data, encodes it, ranks the documents and computes the metrics.

        Raises:
            BadInput: the data is missing (the message says which files to put where), or a text is over the model's
                limit.
        """
        ...


class Benchmark(Protocol):
    """A named list of tasks, in display order."""

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> Sequence[Task]: ...

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Returns the headline numbers by name.

        Args:
            parts: task name -> its parts, for the finished tasks. If some tasks are unfinished, the averages are over
                the finished ones, and the summary says that the benchmark is incomplete.
        """
        ...


def main_value(parts: Sequence[Part], metric: str) -> float:
    """Returns a task's value of a metric: the mean over splits of each split's mean over subsets."""
    splits: dict[str, list[float]] = {}
    for part in parts:
        splits.setdefault(part.split, []).append(part.metrics[metric])
    return statistics.fmean(statistics.fmean(values) for values in splits.values())


def mean_over_tasks(parts: Mapping[str, Sequence[Part]], metric: str) -> float:
    """Returns the mean of `main_value` over tasks."""
    return float(np.mean([main_value(of_task, metric) for of_task in parts.values()]))


def mean_of_each(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the mean of the values of each name, in order of first appearance."""
    by_name: dict[str, list[float]] = {}
    for name, value in values:
        by_name.setdefault(name, []).append(value)
    return {name: float(np.mean(each)) for name, each in by_name.items()}
