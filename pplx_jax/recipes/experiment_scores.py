"""Scores the model of an arm on the retrieval sets of its corpus, query by query.

| sets | settings |
|---|---|
| `evaluation/` | passages alone: float, INT8 and binary vectors |
| `probes/` | INT8, passages in their documents, in order and with the chunks in reverse order; and passages alone |

In a probe the first chunk of a document names what the other chunks are about. In reverse order it comes last: then a
causal model reads a passage before what it is about is named.
"""

import dataclasses
import functools
import pathlib
from typing import Any

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask
from pplx_jax.evaluation.evaluate import evaluate_task
from pplx_jax.evaluation.suites.beir_folder import FolderBenchmark, open_folder
from pplx_jax.recipes.phases import document_size, evaluation_folder

REVERSED = "-reversed"
PRECISIONS = ("tanh", "int8", "binary")


def score_arm(workdir: pathlib.Path, model: pathlib.Path, output: pathlib.Path, lengths: Lengths) -> None:
    """Writes a results folder of a model; finished tasks are skipped.

    Args:
      workdir: of the run.
      model: a model folder in it.
      output: the results folder.
      lengths: of the recipe; documents are cut as in its contextual stage.
    """
    plain = list(open_folder(evaluation_folder(workdir)).tasks)
    folder = workdir / "data" / "corpus" / "probes"
    probes = list(open_folder(folder).tasks) if folder.exists() else []
    size: dict[str, Any] = document_size(lengths)
    probes = [dataclasses.replace(task, **size) for task in probes]
    reverse = [reversed_task(task) for task in probes]
    benchmark = FolderBenchmark("experiment", [*plain, *probes, *reverse])
    score = functools.partial(evaluate_task, str(model), benchmark=benchmark, truncate=True, output=output)
    score(tasks=[task.name for task in plain], quantization=PRECISIONS)
    if probes:
        score(tasks=[task.name for task in probes], quantization="int8", context="both")
        score(tasks=[task.name for task in reverse], quantization="int8", context="with")


def reversed_task(task: RetrievalTask) -> RetrievalTask:
    """Returns the task with the chunks of each document in reverse order."""
    return dataclasses.replace(
        task,
        name=f"{task.name}{REVERSED}",
        load=functools.partial(_reversed, task),
        revision_of=lambda: f"{task.revision}{REVERSED}",
    )


def _reversed(task: RetrievalTask) -> RetrievalSet:
    data = task.load()
    return dataclasses.replace(data, chunks=[-place for place in data.chunks])
