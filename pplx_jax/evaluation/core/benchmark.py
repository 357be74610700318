"""What a benchmark is to the runner: tasks that score one system each, and the averages that its paper prints."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from pplx_jax.inference.encoder import Encoder
from pplx_jax.kernels.quantization import Quantization

TOO_LONG = "give --truncate, or a longer model"  # what to do about a text past the model's limit


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a system represents texts; the same system under equal settings gives equal scores.

    Attributes:
        quantization: of the vectors that are compared: by cosine, "ubinary" by Hamming distance.
        dims: only the first dimensions; None for all.
        context: passages are encoded together with their neighbours of the same document (late chunking).
        truncate: cut texts past the model's limit instead of raising.
    """

    quantization: Quantization = "int8"
    dims: int | None = None
    context: bool = False
    truncate: bool = False

    @property
    def name(self) -> str:
        """What they are called in results: "int8", "binary-256-context"."""
        parts = (self.quantization, self.dims, "context" if self.context else None)
        return "-".join(str(part) for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class System:
    """What is scored.

    Attributes:
        name: as the user named it: a model folder or "bm25".
        encoder: the model; None for BM25.
        settings: of the model's vectors; BM25 has none.
    """

    name: str
    encoder: Encoder | None
    settings: Settings = Settings()

    @property
    def setting(self) -> str:
        """The name of its settings; BM25 has one only."""
        return self.name if self.encoder is None else self.settings.name


@dataclasses.dataclass(frozen=True)
class Part:
    """The figures of one split and subset of a task.

    Attributes:
        split: such as "test".
        subset: a language, a length, a data set; "default" where the task has one only.
        metrics: name -> mean over all judged queries, in [0, 1].
        queries: judged.
        documents: ranked.
        query_ids: one a query, and
        per_query: name -> float [queries], what `metrics` are the means of; intervals and paired tests are made of it.
            Empty where a benchmark's own code keeps only the means.
        lengths: int64 [queries], characters of each query's longest relevant document; empty where not known.
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


def main_value(parts: Sequence[Part], metric: str) -> float:
    """A task's figure: the mean over its splits of the mean over a split's subsets."""
    splits: dict[str, list[float]] = {}
    for part in parts:
        splits.setdefault(part.split, []).append(part.metrics[metric])
    return statistics.fmean(statistics.fmean(values) for values in splits.values())


class Task(Protocol):
    """One data set of a benchmark.

    Attributes:
        name: unlike any other in the benchmark.
        main_metric: the one that averages are made of.

    A task may also have `revision`, a str that changes with its data or its protocol: results of another revision
    are not taken for its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def main_metric(self) -> str: ...

    def evaluate(self, system: System) -> Sequence[Part]:
        """Loads the data, encodes, ranks, judges.

        Raises:
            BadInput: the data is not there (the message says which files to put where), or a text is past the
                model's limit.
        """
        ...


class Benchmark(Protocol):
    """A family's tasks, in the order in which they are shown."""

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> Sequence[Task]: ...

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """The benchmark's headline figures by name.

        Args:
            parts: task -> its parts, of the tasks that are finished; the averages of an unfinished benchmark are over
                those, and the runner says that it is unfinished.
        """
        ...
