"""Exact search behind mteb's `SearchProtocol`: integers stay integers, packed bits go by Hamming distance.

mteb's own search hands every embedding to a float cosine of torch and lets `torch.topk` settle ties. Here ties go by
document id, descending, as in trec_eval, also where they straddle the last rank.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.errors import BadInput
from pplx_jax.evaluation.benchmark import Settings, System
from pplx_jax.evaluation.mteb_texts import Prompts, document_texts, query_texts, task_instruction
from pplx_jax.evaluation.pooled import pooled_vectors
from pplx_jax.models.quantization import quantize
from pplx_jax.progress import Progress
from pplx_jax.retrieval.beir import RetrievalSet
from pplx_jax.retrieval.bm25 import BM25
from pplx_jax.retrieval.encoder import Encoder
from pplx_jax.retrieval.metrics import tie_places
from pplx_jax.retrieval.search import rank_scores, similarity, top_k

DOCUMENTS_PER_BLOCK = 8192
_QUERIES_PER_BLOCK = 256
_BYTES_IN_MEMORY = 4 << 30


class Search:
    """A system as mteb searches with it.

    Args:
        system: a model, or BM25.
        prompts: around its texts.

    Attributes:
        mteb_model_meta: what mteb writes beside results.
    """

    def __init__(self, system: System, prompts: Prompts, meta: Any):
        self.system, self.prompts, self.mteb_model_meta = system, prompts, meta
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Keeps the corpus, mteb's `Dataset` of id, text, title?, parent?, chunk?; encoding waits for the queries."""
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
        """Ranks the indexed corpus, or of it the candidates `top_ranked` of each query.

        Returns:
            query id -> document id -> score, of the `top_k` best documents.

        Raises:
            BadInput: a text is past the model's limit, or a row has none.
        """
        where = f"{task_metadata.name}, {hf_subset}, {hf_split}"
        ids, query_ids = list(self._corpus["id"]), list(queries["id"])
        instruct = {kind: task_instruction(task_metadata, kind) for kind in ("query", "document")}
        try:
            texts = self.prompts.queries(query_texts(queries[:]), instruct["query"])
            scores = self._scores(texts, query_ids, instruct["document"], where)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
        if top_ranked is None:
            return dict(zip(query_ids, _best(scores, ids, len(query_ids), top_k), strict=True))
        row = {document: place for place, document in enumerate(ids)}
        return {
            query: _among(scores, place, np.array([row[one] for one in top_ranked[query]]), ids, top_k)
            for place, query in enumerate(query_ids)
            if query in top_ranked
        }

    def _scores(self, queries: list[str], query_ids: list[str], instruction: str, where: str) -> "_Scores":
        encoder, settings, corpus = self.system.encoder, self.system.settings, self._corpus
        if encoder is None:
            return _BM25Scores(queries, BM25(document_texts(corpus[:])))
        if settings.context and "parent" in corpus.column_names:
            data = _with_parents(corpus, self.prompts.documents(document_texts(corpus[:]), instruction), queries)
            pooled = pooled_vectors(encoder, data, context=True, dims=settings.dims, truncate=settings.truncate)
            vectors = [quantize(part, settings.quantization) for part in pooled]
            return _VectorScores(*vectors, packed=settings.quantization == "ubinary")
        vectors = encode(encoder, queries, query_ids, settings)
        blocks = _blocks(corpus, self.prompts, instruction)
        documents = _encode_blocks(encoder, blocks, len(corpus), settings, where)
        return _VectorScores(vectors, documents, packed=settings.quantization == "ubinary")


def encode(encoder: Encoder, texts: Sequence[str], ids: Sequence[str], settings: Settings) -> np.ndarray:
    """Vectors of texts [n, width] under `settings`.

    Raises:
        BadInput: a text is past the model's limit; the message names its id.
    """
    overflow = "truncate" if settings.truncate else "error"
    try:
        return encoder.encode(texts, quantization=settings.quantization, dims=settings.dims, overflow=overflow)
    except BadInput:
        limit = encoder.config.max_length
        for name, tokens in zip(ids, encoder.count_tokens(texts), strict=True):
            if tokens > limit and not settings.truncate:
                raise BadInput(
                    f"{name!r} has {tokens} tokens, the model takes {limit}; ask to truncate, or use a longer model"
                ) from None
        raise


@dataclasses.dataclass(frozen=True)
class _VectorScores:
    """Of vectors [Q, width] and [N, width]."""

    queries: np.ndarray
    documents: np.ndarray
    packed: bool

    def best(self, block: slice, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return top_k(self.queries[block], self.documents, places, k, packed=self.packed)

    def of(self, query: int, rows: np.ndarray) -> np.ndarray:
        return similarity(self.queries[query : query + 1], self.documents[rows], self.packed)


@dataclasses.dataclass(frozen=True)
class _BM25Scores:
    queries: Sequence[str]
    index: BM25

    def best(self, block: slice, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return rank_scores(self.index.scores(self.queries[block]), places, k)

    def of(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.index.scores(self.queries[query : query + 1])[:, rows]


_Scores = _VectorScores | _BM25Scores


def _best(scores: _Scores, ids: list[str], queries: int, k: int) -> Iterator[dict[str, float]]:
    """Each query's best documents and their scores."""
    places = tie_places(ids)
    for begin in range(0, queries, _QUERIES_PER_BLOCK):
        documents, values = scores.best(slice(begin, begin + _QUERIES_PER_BLOCK), places, k)
        # Worst first: of an id that stands twice in a corpus, the better score stays.
        for ranked, found in zip(documents[:, ::-1].tolist(), values[:, ::-1].tolist(), strict=True):
            yield {ids[document]: score for document, score in zip(ranked, found, strict=True)}


def _among(scores: _Scores, query: int, rows: np.ndarray, ids: list[str], k: int) -> dict[str, float]:
    """A query's best candidates and their scores."""
    if not len(rows):
        return {}
    candidates = [ids[row] for row in rows]
    ranked, found = rank_scores(scores.of(query, rows), tie_places(candidates), k)
    return {candidates[place]: score for place, score in zip(ranked[0].tolist(), found[0].tolist(), strict=True)}


def _blocks(corpus: Any, prompts: Prompts, instruction: str) -> Iterator[tuple[list[str], list[str]]]:
    """Texts and ids, a block of rows read at a time."""
    for begin in range(0, len(corpus), DOCUMENTS_PER_BLOCK):
        columns = corpus[begin : begin + DOCUMENTS_PER_BLOCK]
        yield prompts.documents(document_texts(columns), instruction), columns["id"]


def _encode_blocks(
    encoder: Encoder, blocks: Iterator[tuple[list[str], list[str]]], total: int, settings: Settings, label: str
) -> np.ndarray:
    """Vectors [total, width]; past what memory should hold, in a file that the system drops when they are let go."""
    vectors, done = np.empty((0, 0)), 0
    with Progress(f"encode {label}", total, "document", enabled=total > DOCUMENTS_PER_BLOCK) as progress:
        for texts, ids in blocks:
            block = encode(encoder, texts, ids, settings)
            if not done:
                vectors = _room((total, block.shape[1]), block.dtype)
            vectors[done : done + len(block)] = block
            done += len(block)
            progress.update(done)
    return vectors


def _room(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    if shape[0] * shape[1] * dtype.itemsize <= _BYTES_IN_MEMORY:
        return np.empty(shape, dtype)
    return np.memmap(tempfile.TemporaryFile(prefix="pplx-jax-vectors-"), dtype, "w+", shape=shape)


def _with_parents(corpus: Any, documents: list[str], queries: list[str]) -> RetrievalSet:
    """The set for late chunking; a place within the parent that the corpus does not give is the order of its rows."""
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
        query_ids=[],
        queries=queries,
        qrels={},
    )
