"""Queries with their relevant documents, from human labels, from fused rankings, or both."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_qrels, read_queries
from pplx_jax.data.io.trec_run import read_run
from pplx_jax.evaluation.suites.query_to_document.fusion import fused_labels

HUMAN, FUSED = "human", "fused"


@dataclasses.dataclass(frozen=True)
class LabelledQueries:
    """Judged queries, and (query, relevant document) pairs for each kind of label.

    Attributes:
        ids, texts: of Q judged queries.
        judged: kind -> int64, indices of the queries with labels of that kind, also if no document is relevant.
        kinds: [J] kind of each pair, "human" or "fused".
        query: int64 [J], index of each pair's query.
        documents: J ids.
    """

    ids: list[str]
    texts: list[str]
    judged: dict[str, np.ndarray]
    kinds: np.ndarray
    query: np.ndarray
    documents: list[str]

    def recall(self, kind: str, ranks: np.ndarray, cutoff: int) -> np.ndarray:
        """Returns float64: for each query that `kind` judges, the share of its relevant documents up to rank `cutoff`.

        Args:
            kind: of label.
            ranks: int64 [J], from 1.
            cutoff: the last rank that counts.
        """
        of_kind = self.kinds == kind
        relevant = np.bincount(self.query[of_kind], minlength=len(self.ids))
        found = np.bincount(self.query[of_kind & (ranks <= cutoff)], minlength=len(self.ids))
        return (found / np.maximum(relevant, 1))[self.judged[kind]]


def read_labelled_queries(folder: pathlib.Path, relevant: int, *, never_own: bool) -> LabelledQueries:
    """Reads queries.jsonl, and qrels.tsv and runs/*.trec if they exist.

    Args:
        folder: the set.
        relevant: number of relevant documents per query in fused labels.
        never_own: whether the document with the id of a query is never relevant to it.

    Raises:
        BadInput: there are no labels, a file cannot be read, or a label names an unknown query.
    """

    def may_be_relevant(query: str, document: str) -> bool:
        return not (never_own and document == query)

    queries = read_queries(folder)
    labels: dict[str, Mapping[str, Mapping[str, int]]] = {}
    if any(folder.glob("qrels*")):
        labels[HUMAN] = read_qrels(folder, queries)
    runs = sorted([*folder.glob("runs/*.trec"), *folder.glob("runs/*.trec.gz")])
    if runs:
        labels[FUSED] = fused_labels([read_run(path) for path in runs], relevant, counts=may_be_relevant)
        unknown = labels[FUSED].keys() - queries.keys()
        if unknown:
            raise BadInput(
                f"{folder / 'runs'} has a ranking for {min(unknown)!r}, which is not in queries.jsonl; add the query"
            )
    if not labels:
        raise BadInput(f"{folder} has no labels; add qrels.tsv, or runs/*.trec of several systems to fuse")
    ids = [query for query in queries if any(query in judged for judged in labels.values())]
    row = {query: index for index, query in enumerate(ids)}
    pairs = [
        (kind, row[query], document)
        for kind, judged in labels.items()
        for query, documents in judged.items()
        for document, grade in documents.items()
        if grade > 0 and may_be_relevant(query, document)
    ]
    kinds, rows, documents = zip(*pairs, strict=True) if pairs else ((), (), ())
    return LabelledQueries(
        ids=ids,
        texts=[queries[query] for query in ids],
        judged={kind: np.array([row[query] for query in judged], np.int64) for kind, judged in labels.items()},
        kinds=np.array(kinds, str),
        query=np.array(rows, np.int64),
        documents=list(documents),
    )
