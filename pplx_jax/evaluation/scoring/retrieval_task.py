"""A task that is one retrieval set: every query against every document, judged as trec_eval judges."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.core.benchmark import Part, System
from pplx_jax.evaluation.scoring.scorers import bm25_scorer, cosine_scorer, means, score
from pplx_jax.evaluation.scoring.set_embeddings import CONTEXT_CHUNKS, pooled_vectors

METRICS = ("ndcg@10", "recall@10", "recall@100", "recall@1000", "mrr@10", "mrr", "map")


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """One of `benchmark.Task`.

    Attributes:
        name: of the task.
        load: reads the set.
        revision_of: gives what changes with the set's data, without reading all of it where that can be.
        split, subset: of its only part.
        main_metric: one of `metrics`.
        metrics: see `retrieval.metrics`.
        chunks_per_document: most chunks that are encoded together in context.
        run_file: where to write the best thousand documents of each query, if anywhere.
    """

    name: str
    load: Callable[[], RetrievalSet]
    revision_of: Callable[[], str] = str
    split: str = "test"
    subset: str = "default"
    main_metric: str = "ndcg@10"
    metrics: tuple[str, ...] = METRICS
    chunks_per_document: int = CONTEXT_CHUNKS
    run_file: pathlib.Path | None = None

    @property
    def revision(self) -> str:
        return self.revision_of()

    def evaluate(self, system: System) -> Sequence[Part]:
        data = self.load()
        if system.encoder is None:
            scorer = bm25_scorer(data)
        else:
            settings = system.settings
            queries, documents = pooled_vectors(
                system.encoder,
                data,
                context=settings.context and data.has_context,
                dims=settings.dims,
                truncate=settings.truncate,
                chunks_per_document=self.chunks_per_document,
            )
            scorer = cosine_scorer(queries, documents, settings.quantization)
        values = score(data, scorer, self.metrics, self.run_file)
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
    """int64 [queries]: characters of the longest relevant document; 0 where none is."""
    lengths = dict(zip(data.document_ids, map(len, data.documents), strict=True))
    relevant = ((lengths.get(document, 0) for document, grade in data.qrels[query].items() if grade > 0)
                for query in data.query_ids)  # fmt: skip
    return np.array([max(found, default=0) for found in relevant], np.int64)
