"""Queries with the documents that are relevant to them, by people's judgement, by fused rankings, or by both."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_qrels, read_queries
from pplx_jax.data.io.trec_run import read_run
from pplx_jax.evaluation.scoring.fusion import fused_labels

HUMAN, FUSED = "human", "fused"


@dataclasses.dataclass(frozen=True)
class LabelledQueries:
    """Judged queries and their (query, relevant document) pairs under each kind of label.

    Attributes:
        ids, texts: Q judged queries.
        judged: kind -> int64, the rows of the queries that it judges, those without a relevant document too.
        kinds: J kinds, "human" or "fused", one a pair.
        query: int64 [J], the row of each pair's query.
        documents: J ids.
    """

    ids: list[str]
    texts: list[str]
    judged: dict[str, np.ndarray]
    kinds: np.ndarray
    query: np.ndarray
    documents: list[str]

    def recall(self, kind: str, ranks: np.ndarray, cutoff: int) -> np.ndarray:
        """float64, a value a query that `kind` judges: the share of its relevant documents that rank within `cutoff`.

        Args:
            kind: of label.
            ranks: int64 [J], from 1.
            cutoff: last rank that counts.
        """
        of_kind = self.kinds == kind
        relevant = np.bincount(self.query[of_kind], minlength=len(self.ids))
        found = np.bincount(self.query[of_kind & (ranks <= cutoff)], minlength=len(self.ids))
        return (found / np.maximum(relevant, 1))[self.judged[kind]]


def read_labelled_queries(folder: pathlib.Path, relevant: int, *, queries_are_corpus: bool) -> LabelledQueries:
    """Reads queries.jsonl, and qrels.tsv and runs/*.trec where they are there.

    Args:
        folder: the set.
        relevant: documents that are fused to be relevant to a query.
        queries_are_corpus: a query that is labelled relevant to itself is left out.

    Raises:
        BadInput: no labels at all, a file that cannot be read, or labels of an unknown query.
    """

    def may_be_relevant(query: str, document: str) -> bool:
        return not (queries_are_corpus and document == query)

    queries = read_queries(folder)
    labels: dict[str, Mapping[str, Mapping[str, int]]] = {}
    if any(folder.glob("qrels*")):
        labels[HUMAN] = read_qrels(folder, queries)
    runs = sorted([*folder.glob("runs/*.trec"), *folder.glob("runs/*.trec.gz")])
    if runs:
        labels[FUSED] = fused_labels([read_run(path) for path in runs], relevant, counts=may_be_relevant)
        unknown = labels[FUSED].keys() - queries.keys()
        if unknown:
            raise BadInput(f"{folder / 'runs'} ranks for {min(unknown)!r}, which queries.jsonl does not have; add it")
    if not labels:
        raise BadInput(f"{folder} has no labels: put qrels.tsv there, or runs/*.trec of several systems to fuse")
    ids = [query for query in queries if any(query in judged for judged in labels.values())]
    row = {query: place for place, query in enumerate(ids)}
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
