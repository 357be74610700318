"""Exact search that implements mteb's `SearchProtocol`: int8 products of integers, Hamming distance of packed bits.

mteb's own search computes a float cosine in torch and leaves ties to `torch.topk`. Here ties are broken by document id,
descending, as in trec_eval, also at the last rank.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.core.prompts import DOCUMENT, QUERY
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.scoring.set_embeddings import embed_set
from pplx_jax.evaluation.scoring.system import System, pool
from pplx_jax.evaluation.suites.mteb import embedding_store
from pplx_jax.evaluation.suites.mteb.embedding_store import EmbeddingStore, store_folder
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts, document_texts, query_texts, task_instruction
from pplx_jax.inference.encoder import document_encoder, query_encoder
from pplx_jax.inference.prompted_encoder import PromptedEncoder
from pplx_jax.kernels.quantization import quantize, zero_rows
from pplx_jax.retrieval.bm25 import BM25
from pplx_jax.retrieval.exact_search import rank_scores, similarity, top_k
from pplx_jax.retrieval.metrics import tie_places

DOCUMENTS_PER_BLOCK = 1 << 16
_QUERIES_PER_BLOCK = 256


class Search:
    """A system with the search interface of mteb.

    Args:
        system: a model, or BM25.
        prompts: templates around its texts.
        meta: mteb's `ModelMeta`.
        scratch: folder for the vectors of a corpus until it is ranked, so that an interrupted run resumes.
        revision: of the data and the protocol; vectors in `scratch` of another revision are not used.
        drops_own: whether the document with the id of a query is no hit of this query.

    Attributes:
        mteb_model_meta: the metadata that mteb writes with results.
    """

    def __init__(
        self,
        system: System,
        prompts: Prompts,
        meta: Any,
        scratch: pathlib.Path | None = None,
        *,
        revision: str = "",
        drops_own: bool = False,
    ):
        self.system, self.prompts, self.mteb_model_meta, self._scratch = system, prompts, meta, scratch
        self._revision, self._drops_own = revision, drops_own
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Stores the corpus, a `Dataset` of id, text, title?, parent?, chunk?. `search` encodes it."""
        self._corpus = corpus

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Ranks the indexed corpus, or only the candidates `top_ranked` of each query.

        Returns:
            query id -> document id -> score, for the `top_k` best documents that are retrieved; see `metrics`.

        Raises:
            BadInput: a text is over the model's limit, or a row has no text.
        """
        where = f"{task_metadata.name}, {hf_subset}, {hf_split}"
        ids, query_ids = list(self._corpus["id"]), list(queries["id"])
        instruct = {kind: task_instruction(task_metadata, kind) for kind in ("query", "document")}
        folder = self._folder(where, task_metadata.revision, len(ids))
        try:
            texts = self.prompts.queries(query_texts(queries[:]), instruct["query"])
            with EmbeddingStore(len(ids), folder) as store:
                scores = self._scores(texts, query_ids, store, instruct["document"], where)
                if top_ranked is None:
                    best = _best(scores, ids, query_ids, top_k, drops_own=self._drops_own)
                    return dict(zip(query_ids, best, strict=True))
                row = {document: index for index, document in enumerate(ids)}
                candidates = {
                    query: [one for one in documents if not (self._drops_own and one == query)]
                    for query, documents in top_ranked.items()
                }
                return {
                    query: _among(scores, place, np.array([row[one] for one in candidates[query]], int), ids, top_k)
                    for place, query in enumerate(query_ids)
                    if query in candidates
                }
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None

    def _scores(
        self, queries: list[str], query_ids: list[str], store: EmbeddingStore, instruction: str, where: str
    ) -> "_Scores":
        encoder, settings, corpus = self.system.encoder, self.system.settings, self._corpus
        packed = settings.quantization == "ubinary"
        if encoder is None:
            return _BM25Scores(queries, BM25(document_texts(corpus[:])))
        # A template replaces the prompt of the model.
        own = {QUERY: self.prompts.query == NO_PROMPTS.query, DOCUMENT: self.prompts.document == NO_PROMPTS.document}
        if settings.context and "parent" in corpus.column_names:
            if getattr(encoder, "prompts", {}):
                encoder = PromptedEncoder(encoder, {name: "" for name, kept in own.items() if not kept})
            data = _with_parents(
                corpus, self.prompts.documents(document_texts(corpus[:]), instruction), query_ids, queries
            )
            pooled = embed_set(encoder, data, context=True, dims=settings.dims, overflow=settings.overflow)
            query_vectors, document_vectors = (quantize(part, settings.quantization) for part in pooled)
            return _VectorScores(query_vectors, document_vectors, packed, *map(zero_rows, pooled))
        encode_queries = query_encoder(encoder) if own[QUERY] else encoder.encode
        encode_texts = document_encoder(encoder) if own[DOCUMENT] else encoder.encode
        pooled_queries = pool(encode_queries, query_ids, queries, settings)
        query_vectors = quantize(pooled_queries, settings.quantization)
        total = len(corpus)
        with Progress(
            f"encode {where}", total, "document", start=store.done, enabled=total > DOCUMENTS_PER_BLOCK
        ) as progress:
            for begin in range(store.done, total, DOCUMENTS_PER_BLOCK):
                columns = corpus[begin : begin + DOCUMENTS_PER_BLOCK]
                texts = self.prompts.documents(document_texts(columns), instruction)
                pooled_texts = pool(encode_texts, columns["id"], texts, settings)
                store.add(quantize(pooled_texts, settings.quantization), zero_rows(pooled_texts))
                progress.update(store.done)
        return _VectorScores(query_vectors, store.vectors, packed, zero_rows(pooled_queries), store.empty)

    def _folder(self, where: str, revision: str, documents: int) -> pathlib.Path | None:
        encoder, settings = self.system.encoder, self.system.settings
        if encoder is None:
            return None
        return store_folder(
            self._scratch,
            corpus=[where, revision, self._revision, documents],
            model=encoder.fingerprint,
            settings=dataclasses.asdict(settings),
            prompt=self.prompts.document,
            format=embedding_store.FORMAT,
        )


@dataclasses.dataclass(frozen=True)
class _VectorScores:
    """Scores of query vectors [Q, width] and document vectors [N, width]. Empty texts are not retrieved: -inf."""

    queries: np.ndarray
    documents: np.ndarray
    packed: bool
    empty_queries: np.ndarray
    empty_documents: np.ndarray

    def best(self, block: slice, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries, excluded = self.queries[block], self.empty_documents
        documents, scores = top_k(queries, self.documents, places, k, packed=self.packed, excluded=excluded)
        return documents, np.where(self.empty_queries[block, None], np.float32(-np.inf), scores)

    def of(self, query: int, rows: np.ndarray) -> np.ndarray:
        scores = similarity(self.queries[query : query + 1], self.documents[rows], self.packed)
        return np.where(self.empty_queries[query] | self.empty_documents[rows], np.float32(-np.inf), scores)


@dataclasses.dataclass(frozen=True)
class _BM25Scores:
    queries: Sequence[str]
    index: BM25

    def best(self, block: slice, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return rank_scores(self.index.scores(self.queries[block]), places, k)

    def of(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.index.scores(self.queries[query : query + 1])[:, rows]


_Scores = _VectorScores | _BM25Scores


def _best(
    scores: _Scores, ids: list[str], query_ids: list[str], k: int, *, drops_own: bool
) -> Iterator[dict[str, float]]:
    """Yields each query's best documents and their scores."""
    places = tie_places(ids)
    for begin in range(0, len(query_ids), _QUERIES_PER_BLOCK):
        block = slice(begin, begin + _QUERIES_PER_BLOCK)
        documents, values = scores.best(block, places, k + drops_own)
        for query, ranked, found in zip(query_ids[block], documents.tolist(), values.tolist(), strict=True):
            hits = [(ids[document], score) for document, score in zip(ranked, found, strict=True) if score > -np.inf]
            kept = [hit for hit in hits if not (drops_own and hit[0] == query)][:k]
            yield dict(reversed(kept))  # worst first, so that an id that occurs twice keeps its better score


def _among(scores: _Scores, query: int, rows: np.ndarray, ids: list[str], k: int) -> dict[str, float]:
    """Returns a query's best candidates and their scores."""
    if not len(rows):
        return {}
    candidates = [ids[row] for row in rows]
    ranked, found = rank_scores(scores.of(query, rows), tie_places(candidates), k)
    best = zip(ranked[0].tolist(), found[0].tolist(), strict=True)
    return {candidates[place]: score for place, score in best if score > -np.inf}


def _with_parents(corpus: Any, documents: list[str], query_ids: list[str], queries: list[str]) -> RetrievalSet:
    """Returns the set for late chunking. Without a column "chunk", chunks are in row order."""
    columns = corpus[:]
    parents = [str(parent) for parent in columns["parent"]]
    seen: dict[str, int] = {}
    order = []
    for parent in parents:
        order.append(seen.get(parent, 0))
        seen[parent] = order[-1] + 1
    return RetrievalSet(
        document_ids=columns["id"],
        documents=documents,
        parents=parents,
        chunks=columns.get("chunk", order),
        query_ids=query_ids,
        queries=queries,
        qrels={},
    )
