"""ConTEB: retrieval of chunks that need their document's context (arXiv 2505.24782; repository illuin-tech/conteb).

Eight data sets of documents split into chunks. A query is ranked against the chunks of all documents. With `context`,
the chunks of a document are encoded together in row order (late chunking), up to the model's limit. Relevant chunks
have grade 1. Vectors are compared by cosine.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.core.benchmark import Part, mean_over_tasks
from pplx_jax.evaluation.core.hub import Table
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask

NAMES = ("conteb",)
# Data set of illuin-conteb -> the evaluated split (scripts/evaluation/eval_conteb.py).
SPLITS = {
    "mldr-conteb-eval": "test",
    "squad-conteb-eval": "validation",
    "narrative-qa": "test",
    "covid-qa": "train",
    "esg-reports": "test",
    "football": "train",
    "geography": "train",
    "insurance": "train",
}
# ConTEB has training sets of the same collections, on which its own models are trained
# (https://huggingface.co/illuin-conteb/collections, "ConTEB training datasets").
WITH_TRAINING_SET = ("mldr-conteb-eval", "squad-conteb-eval", "narrative-qa")
OTHERS = "ndcg@10 without trained sets"
OWNER = "illuin-conteb"
_WHOLE_DOCUMENT = 1_000_000  # chunks; only the model's token limit bounds a document


@dataclasses.dataclass(frozen=True)
class ConTEB:
    """A `benchmark.Benchmark`; `averages` has the mean nDCG@10 of all sets, and of those without a training set."""

    tasks: Sequence[RetrievalTask]
    name: str = "conteb"

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        averages = {"ndcg@10": mean_over_tasks(parts, "ndcg@10")}
        others = {name: of_task for name, of_task in parts.items() if name not in WITH_TRAINING_SET}
        return averages | ({OTHERS: mean_over_tasks(others, "ndcg@10")} if others else {})


def open_benchmark(name: str, data: pathlib.Path | None = None) -> ConTEB:
    """Opens ConTEB.

    Args:
        name: "conteb".
        data: a folder with NAME/documents/SPLIT-*.parquet and NAME/queries/SPLIT-*.parquet for each data set NAME; None
            for the hub.
    """
    load = functools.lru_cache(maxsize=1)(_load)
    return ConTEB(
        [
            RetrievalTask(
                name=task,
                load=functools.partial(load, task, data),
                revision_of=functools.partial(_revision, task, data),
                split=split,
                chunks_per_document=_WHOLE_DOCUMENT,
            )
            for task, split in SPLITS.items()
        ],
        name,
    )


def _tables(task: str) -> tuple[Table, Table]:
    repo = f"{OWNER}/{task}"
    return (
        Table(repo, "documents", SPLITS[task], ("chunk_id", "chunk")),
        Table(repo, "queries", SPLITS[task], ("query",)),
    )


def _revision(task: str, data: pathlib.Path | None) -> str:
    return "-".join(filter(None, (table.digest(data) for table in _tables(task))))


def _load(task: str, data: pathlib.Path | None) -> RetrievalSet:
    documents, queries = (table.read(data) for table in _tables(task))
    texts: dict[str, str] = {}
    parents, positions = [], []
    seen: collections.Counter[str] = collections.Counter()
    for row in documents:
        parent = _document_of(row["chunk_id"], task)
        if row["chunk_id"] in texts:
            raise BadInput(f"{OWNER}/{task}: the chunk {row['chunk_id']!r} occurs twice; download its files again")
        texts[row["chunk_id"]] = row["chunk"]
        parents.append(parent)
        positions.append(seen[parent])
        seen[parent] += 1
    qrels = {str(number): dict.fromkeys(_relevant(row, task), 1) for number, row in enumerate(queries)}
    unknown = next((chunk for grades in qrels.values() for chunk in grades if chunk not in texts), None)
    if unknown is not None:
        raise BadInput(
            f"{OWNER}/{task}: a query refers to the chunk {unknown!r}, which does not exist; download its files again"
        )
    return RetrievalSet(
        document_ids=list(texts),
        documents=list(texts.values()),
        parents=parents,
        chunks=positions,
        query_ids=list(qrels),
        queries=[row["query"] for row in queries],
        qrels=qrels,
    )


def _document_of(chunk: str, task: str) -> str:
    """Returns DOCUMENT of the chunk id "DOCUMENT_NUMBER"."""
    document, _, number = chunk.rpartition("_")
    if not document or not number.isdigit():
        raise BadInput(f"{OWNER}/{task}: chunk_id {chunk!r} is not DOCUMENT_NUMBER; download its files again")
    return document


def _relevant(row: Mapping[str, Any], task: str) -> list[str]:
    """Returns the relevant chunks of a query. Some data sets have one id, others a list."""
    found = row.get("chunk_ids") or row.get("chunk_id")
    if not found:
        raise BadInput(f"{OWNER}/{task}: a query has no chunk_id, only {', '.join(row)}; download its files again")
    chunks = [found] if isinstance(found, str) else found
    if not isinstance(chunks, list) or not all(isinstance(chunk, str) for chunk in chunks):
        raise BadInput(f"{OWNER}/{task}: a query has the chunk_id {found!r}, not a string; download its files again")
    return chunks
