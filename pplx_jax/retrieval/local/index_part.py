"""One part of an index on disk: the shards of an embedding folder, data for fast search, and the path of the model.

    index.json       {format, model (relative to the folder), model_fingerprint, bit_order, shards, count, dims,
                     quantization, engine, lists, embedded_from (what else the vectors depend on)}
    00000.npy, ...   the embedding folder's vectors [n, width], as hard links if possible
    00000.jsonl, ... one object per vector
    offsets.npy      int64 [N], byte offset of each object in its file
    places.npy       int64 [N], position of each vector in the order of ties: ids descending
    empty.npy        bool [N], vectors of empty texts, which are never hits
    documents.npy    int64 [N], the document of each vector, ascending; only if there are chunks
    signs.*          the first search stage of the engine "faiss", see `sign_search`

Loading is fast at any size: it reads file headers and `empty.npy`, and maps the other arrays.
"""

import bisect
import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.embeddings.folder import document_of, parse_described
from pplx_jax.retrieval.exact_search import rescore, similarity, top_k
from pplx_jax.retrieval.local.best_documents import best_of_documents
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.local.sign_search import SignSearch
from pplx_jax.retrieval.search_options import SearchOptions
from pplx_jax.retrieval.searchable_index import BaseIndex, Hit
from pplx_jax.retrieval.shown_hit import CHUNKS_SHOWN, shown_chunk, shown_hit

FORMAT = 2
INDEX = "index.json"
UPDATES = "updates.json"  # of what was added and deleted since then
LocalEngine = Literal["faiss", "numpy", "jax"]


class IndexPart(BaseIndex):
    """What `local.build` wrote, opened for searching; more attributes in `BaseIndex`.

    It never changes. A `LocalIndex` is one such part and another one for each update, with marks of deleted vectors.

    Attributes:
        engine, lists: the engine it was built for, and the number of inverted lists.
        has_chunks: whether some vectors are chunks of a document.
        documents: int64 [N], the document of each vector; only if `has_chunks`.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any], deleted: np.ndarray | None = None):
        """Use `IndexPart.load` instead."""
        super().__init__(path, description)
        self._files = local_copy(path, nested=False)  # what `update` adds are indexes of their own
        self.engine: LocalEngine = description["engine"]
        self.lists: int = description["lists"]
        self._vectors = ShardedVectors([self._files / f"{shard:05d}.npy" for shard in range(description["shards"])])
        if len(self._vectors) != self.count:
            raise ValueError(f"{len(self._vectors)} vectors of {self.count}")
        self._places = self._column("places", np.int64)
        self._excluded = np.array(self._column("empty", np.bool_))
        if deleted is not None:
            if deleted.shape != self._excluded.shape:
                raise ValueError(f"{len(deleted)} marks of deleted vectors for {self.count} vectors")
            self._excluded |= deleted
        self._offsets = self._column("offsets", np.int64)
        self.has_chunks = (self._files / "documents.npy").exists()
        if self.has_chunks:
            self.documents = self._column("documents", np.int64)

    def _column(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        """Maps an array with one value per vector. Raises ValueError if the file holds anything else."""
        found = np.load(self._files / f"{name}.npy", mmap_mode="r")
        if found.shape != (self.count,) or found.dtype != dtype:
            raise ValueError(f"{name}.npy holds {found.dtype}{list(found.shape)} for {self.count} vectors")
        return found

    @classmethod
    def load(cls, path: str | pathlib.Path, deleted: np.ndarray | None = None) -> "IndexPart":
        """Opens the folder. Vectors marked in `deleted`, bool [N], are never hits.

        Raises:
            BadInput: there is no index, or it is damaged or of another version.
        """
        path = as_path(path)
        with _usable(path):
            description = json.loads((path / INDEX).read_text(encoding="utf-8"))
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
            return cls(path, description, deleted)

    def nearest(
        self, queries: np.ndarray, k: int, options: SearchOptions = SearchOptions()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best vectors of each query, best first, ties by id descending.

        Args:
            queries: [Q, width], quantized like the index.
            k: at least 1.
            options: how to search.

        Returns:
            (numbers of vectors int64 [Q, K], scores float32 [Q, K]). Scores are cosines; for packed signs
            1 - 2 Hamming / dims. K is k, or less in a smaller index. Unused entries at the end are -1 and -inf.

        Raises:
            BadInput: the queries have another width or quantization, k is less than 1, or the index does not support
                the engine.
        """
        queries = np.asarray(queries)
        if queries.shape[1:] != self._vectors.shape[1:] or queries.dtype != self._vectors.dtype:
            raise BadInput(
                f"the query is {queries.dtype}{list(queries.shape[1:])}, the index {self.path} holds "
                f"{self._vectors.dtype}[{self._vectors.shape[1]}]; encode it with "
                f"quantization={self.quantization!r}, dims={self.dims}"
            )
        if k < 1:
            raise BadInput(f"k={k}: request at least one hit")
        self.require_engine(options, *get_args(LocalEngine))
        match options.engine or self.engine:
            case "faiss":
                live = max(np.count_nonzero(~self._excluded), 1)
                count = min(math.ceil(options.count(k) * self.count / live), self.count)
                found = self._signs.candidates(queries, count, options.probes)
                found = np.where(self._excluded[found], -1, found)
                return rescore(queries, found, self._vectors.take, self._places, k)
            case "jax":
                return self._on_devices.top_k(queries, k)
        packed = self.quantization == "ubinary"
        return top_k(queries, self._vectors, self._places, k, packed=packed, excluded=self._excluded)

    @functools.cached_property
    def _signs(self) -> SignSearch:
        if self.engine != "faiss":
            raise BadInput(f"the index {self.path} has no signs; build it with --engine faiss, or search with numpy")
        with _usable(self.path):
            signs = SignSearch(self._files, self.lists)
            if signs.shape != (self.count, self.dims // 8):
                raise ValueError(
                    f"signs.npy holds {list(signs.shape)} for {self.count} vectors of {self.dims} dimensions"
                )
            return signs

    @functools.cached_property
    def _on_devices(self):
        from pplx_jax.retrieval.local.pod_search import PodSearch  # imports JAX

        if self._vectors.dtype != np.int8:
            raise BadInput(
                f"the engine jax compares int8 and binary embeddings, not {self.quantization}; use --engine numpy"
            )
        return PodSearch(self._vectors, self._places, self._excluded)

    def search_pooled(
        self, queries: np.ndarray, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        """Returns the hits of pooled queries [Q, dims]; see `SearchableIndex.search_pooled`.

        The hit of a chunk also has "start" and "end" (character offsets, if `embed` split the text) and "chunks": the
        document's `CHUNKS_SHOWN` best chunks.
        """
        stored = quantize(queries, self.quantization, self.bit_order)
        nearest = functools.partial(self.nearest, options=options)
        if not self.has_chunks:
            return [self._hits(*found) for found in zip(*nearest(stored, k), strict=True)]
        best = best_of_documents(nearest, self.documents, stored, k)
        return [
            [self._with_chunks(hit, number, query) for hit, number in zip(self._hits(*found), found[0], strict=True)]
            for query, found in zip(stored, best, strict=True)
        ]

    def _hits(self, numbers: np.ndarray, scores: np.ndarray) -> list[Hit]:
        """Returns the hits of vectors [K] with their scores [K], without those of number -1."""
        rows = self.rows(numbers[numbers >= 0])
        return [shown_hit(row, score) for row, score in zip(rows, scores[numbers >= 0], strict=True)]

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Returns the descriptions of vectors int64 [n]. Raises BadInput if a line is damaged."""
        found: list[dict[str, Any]] = [{}] * len(numbers)
        shards = self._vectors.shard_of(numbers)
        for shard in np.unique(shards):
            with _usable(self.path), open(self._files / f"{shard:05d}.jsonl", "rb") as file:
                for place in np.flatnonzero(shards == shard):
                    file.seek(self._offsets[numbers[place]])
                    try:
                        found[place] = parse_described(file.readline())
                    except ValueError as error:
                        raise ValueError(f"{shard:05d}.jsonl, vector {numbers[place]}: {error}") from None
        return found

    def _with_chunks(self, hit: Hit, number: int, query: np.ndarray) -> Hit:
        """Adds the best chunks of the document to a hit, which is vector `number`."""
        if "chunk" not in hit or "document" not in hit:
            return hit
        numbers, scores = self._chunks_of(self.documents[number], query)
        rows = self.rows(numbers[:CHUNKS_SHOWN])
        return hit | {"chunks": [shown_chunk(*each) for each in zip(rows, scores[:CHUNKS_SHOWN], strict=True)]}

    def _chunks_of(self, document: int, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns numbers and scores of a document's chunks for a query [width], best first, without empty texts."""
        begin, end = np.searchsorted(self.documents, [document, document + 1])
        numbers = np.arange(begin, end)[~self._excluded[begin:end]]
        scores = similarity(query[None], self._vectors.take(numbers), self.quantization == "ubinary")[0]
        order = np.lexsort((self._places[numbers], -scores))
        return numbers[order], scores[order]

    def numbers_of(self, ids: Collection[str]) -> dict[str, list[int]]:
        """Returns the numbers of the vectors of each document that has any. Reads about 2 log2 N lines a document."""
        if not self.count:
            return {}
        by_place = np.empty(self.count, np.int64)
        by_place[self._places] = np.arange(self.count)
        ascending = by_place[::-1]
        found: dict[str, list[int]] = {}

        def row_at(place: int) -> dict[str, Any]:
            return self.rows(ascending[place : place + 1])[0]

        for identity in ids:
            for name in (identity, f"{identity}#0"):
                place = bisect.bisect_left(range(self.count), name, key=lambda place: row_at(place)["id"])
                while place < self.count and (row := row_at(place))["id"] == name:
                    number = int(ascending[place])
                    if document_of(row) == identity:
                        found.setdefault(identity, []).extend(self._numbers_of_same(number))
                    place += 1
        return found

    def _numbers_of_same(self, number: int) -> list[int]:
        """Returns the vectors of the document of a vector."""
        if not self.has_chunks:
            return [number]
        document = self.documents[number]
        return list(range(*np.searchsorted(self.documents, [document, document + 1]).tolist()))


@contextlib.contextmanager
def _usable(path: pathlib.Path):
    """Turns errors in the files of an index into BadInput."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"no index in {path}: {error.filename} is missing; make one with `index`") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(f"the index {path} cannot be used ({error}); make it again with `index`") from None
