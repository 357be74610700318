"""A task with one retrieval set: ranks every document for every query and judges the ranking as trec_eval does."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.scoring.scorers import OwnDocument, bm25_scorer, cosine_scorer, means, score
from pplx_jax.evaluation.scoring.set_embeddings import CONTEXT_CHUNKS, embed_set
from pplx_jax.evaluation.scoring.system import System

METRICS = ("ndcg@10", "recall@10", "recall@100", "recall@1000", "mrr@10", "mrr", "map")
# All-Evidence@K: every relevant chunk of a query is among the first K. Evidence@K, their share, is recall@K.
OF_CHUNKS = ("completeness@10", "completeness@100")


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """A `benchmark.Task` with one part.

    Attributes:
        name: of the task.
        load: reads the set.
        revision_of: returns a str that changes with the set's data, if possible without reading all of it.
        split, subset: of the part.
        main_metric: one of `metrics`.
        metrics: see `retrieval.metrics`. A set of chunks has those of `OF_CHUNKS` too.
        chunks_per_document, tokens_per_document: maximum number of chunks, and of tokens, that are encoded together if
            `context` is set; None for the model's limit of tokens.
        run_file: the file to write the best 1000 documents of each query to; None for no file.
        own_document: whether the document with the id of a query is ranked for it; see
            `scorers.queries_without_own_document`.
    """

    name: str
    load: Callable[[], RetrievalSet]
    revision_of: Callable[[], str] = str  # which returns ""
    split: str = "test"
    subset: str = "default"
    main_metric: str = "ndcg@10"
    metrics: tuple[str, ...] = METRICS
    chunks_per_document: int = CONTEXT_CHUNKS
    tokens_per_document: int | None = None
    run_file: pathlib.Path | None = None
    own_document: OwnDocument | None = None

    @property
    def revision(self) -> str:
        return self.revision_of() + (f" own_document {self.own_document}" if self.own_document else "")

    def with_run_file(self, path: pathlib.Path) -> Self:
        """Returns the task configured to write its ranking to `path`."""
        return dataclasses.replace(self, run_file=path)

    def with_own_document(self, own_document: OwnDocument) -> Self:
        """Returns the task with this choice for documents with the id of a query."""
        return dataclasses.replace(self, own_document=own_document)

    def evaluate(self, system: System) -> Sequence[Part]:
        data = self.load()
        if system.encoder is None:
            scorer = bm25_scorer(data)
        else:
            settings = system.settings
            queries, documents = embed_set(
                system.encoder,
                data,
                context=settings.context and data.has_context,
                dims=settings.dims,
                overflow=settings.overflow,
                chunks_per_document=self.chunks_per_document,
                tokens_per_document=self.tokens_per_document,
            )
            scorer = cosine_scorer(queries, documents, settings.quantization)
        metrics = tuple(dict.fromkeys((*self.metrics, *(OF_CHUNKS if data.has_context else ()))))
        values = score(data, scorer, metrics, self.run_file, self.own_document)
        part = Part(
            split=self.split,
            subset=self.subset,
            metrics=means(values),
            queries=len(data.query_ids),
            documents=len(data.document_ids),
            query_ids=data.query_ids,
            per_query=values,
            lengths=_longest_relevant(data),
        )
        return [part]


def _longest_relevant(data: RetrievalSet) -> np.ndarray:
    """Returns int64 [queries], characters of the longest relevant document; 0 if there is none."""
    lengths = dict(zip(data.document_ids, map(len, data.documents), strict=True))
    relevant = ((lengths.get(document, 0) for document, grade in data.qrels[query].items() if grade > 0)
                for query in data.query_ids)  # fmt: skip
    return np.array([max(found, default=0) for found in relevant], np.int64)
