"""An index: the shards of an embedding folder, how to search them fast, and the model that queries need.

    index.json       {format, model (relative to the folder), model_fingerprint, bit_order, shards, count, dims,
                     quantization, engine, lists}
    00000.npy, ...   the embedding folder's vectors [n, width], the same bytes on disk where hard links are possible
    00000.jsonl, ... one object a vector, and offsets.npy int64 [N], where each begins in its file
    places.npy       int64 [N], the order of ties: ids descending
    empty.npy        bool [N], vectors of empty texts, which are never hits
    documents.npy    int64 [N], the document of each vector, ascending; only where some are chunks of one
    signs.*          the first stage of the engine "faiss", see `sign_search`

Loading maps the files and reads few of them whole, so it takes no time at any size.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.encoder import Encoder
from pplx_jax.kernels.quantization import BitOrder, Quantization, quantize
from pplx_jax.retrieval.embedding_folder import parse_described
from pplx_jax.retrieval.search import rescore, similarity, top_k
from pplx_jax.retrieval.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.sign_search import SignSearch

FORMAT = 2
BuiltEngine = Literal["faiss", "numpy", "vespa"]
Engine = Literal["faiss", "numpy", "jax"]
_HIT_FIELDS = ("id", "text", "path", "line", "document", "chunk", "start", "end")


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How vectors are found.

    Attributes:
        engine: "faiss": candidates by the signs of the vectors, ranked again by exact cosine. "numpy": exact, on the
            processor. "jax": exact and the same, on all of JAX's devices. None: as the index was built.
        candidates: of faiss, how many a hit wanted, and
        least_candidates: how many at least: a few hits are more easily missed than many.
        probes: of faiss with inverted lists, how many of them a query reads; a quarter where None.
    """

    engine: Engine | None = None
    candidates: int = 40
    least_candidates: int = 1000
    probes: int | None = None

    def __post_init__(self):
        if self.engine not in (None, *get_args(Engine)):
            raise BadInput(f"engine={self.engine!r}: give one of {', '.join(get_args(Engine))}")
        if self.candidates < 1:
            raise BadInput(f"candidates={self.candidates}: give at least one candidate a hit")


class Index:
    """An index on disk, opened for searching.

    Attributes:
        path: its folder.
        model: the model folder that encodes queries.
        model_fingerprint: names the model; vectors of another are refused.
        dims, quantization, bit_order, count: of the vectors.
        engine, lists: what it was built for.
        has_chunks: whether some vectors are chunks of one document, and
        documents: then int64 [N], the document of each vector.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any]):
        """Use `Index.load`."""
        self.path = path
        self.model = (path / description["model"]).resolve()
        self.model_fingerprint: str = description["model_fingerprint"]
        self.dims: int = description["dims"]
        self.quantization: Quantization = description["quantization"]
        self.bit_order: BitOrder = description["bit_order"]
        self.count: int = description["count"]
        self.engine: Engine = description["engine"]
        self.lists: int = description["lists"]
        self._vectors = ShardedVectors([path / f"{shard:05d}.npy" for shard in range(description["shards"])])
        if len(self._vectors) != self.count:
            raise ValueError(f"{len(self._vectors)} vectors of {self.count}")
        self._places = self._column("places", np.int64)
        self._empty = np.array(self._column("empty", np.bool_))
        self._offsets = self._column("offsets", np.int64)
        self.has_chunks = (path / "documents.npy").exists()
        if self.has_chunks:
            self.documents = self._column("documents", np.int64)

    def _column(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        """A value a vector. Raises ValueError where the file holds anything else."""
        found = np.load(self.path / f"{name}.npy", mmap_mode="r")
        if found.shape != (self.count,) or found.dtype != dtype:
            raise ValueError(f"{name}.npy holds {found.dtype}{list(found.shape)} for {self.count} vectors")
        return found

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Index":
        """Opens an index.

        Raises:
            BadInput: there is none, or it is damaged or of another version.
        """
        path = pathlib.Path(path)
        with _usable(path):
            description = json.loads((path / "index.json").read_text(encoding="utf-8"))
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
            return cls(path, description)

    def nearest(
        self, queries: np.ndarray, k: int, options: SearchOptions = SearchOptions()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors of each query, best first, ties by id descending.

        Args:
            queries: [Q, width], quantized as the index is.
            k: at least 1.
            options: how.

        Returns:
            (numbers of vectors int64 [Q, K], scores float32 [Q, K]: cosines; of signs 1 - 2 Hamming / dims), K being
            k or less in a smaller index; -1 and -inf at the end where a query found fewer.

        Raises:
            BadInput: the queries are of another width or quantization, k is less than 1, or the engine is none of
                this index's.
        """
        queries = np.asarray(queries)
        if queries.shape[1:] != self._vectors.shape[1:] or queries.dtype != self._vectors.dtype:
            raise BadInput(
                f"the query is {queries.dtype}{list(queries.shape[1:])}, the index {self.path} holds "
                f"{self._vectors.dtype}[{self._vectors.shape[1]}]; encode it with "
                f"quantization={self.quantization!r}, dims={self.dims}"
            )
        if k < 1:
            raise BadInput(f"k={k}: ask for at least one hit")
        match options.engine or self.engine:
            case "faiss":
                count = min(max(k * options.candidates, options.least_candidates), self.count)
                found = self._signs.candidates(queries, count, options.probes)
                return rescore(queries, np.where(self._empty[found], -1, found), self._vectors.take, self._places, k)
            case "jax":
                return self._on_devices.top_k(queries, k)
        packed = self.quantization == "ubinary"
        return top_k(queries, self._vectors, self._places, k, packed=packed, excluded=self._empty)

    @functools.cached_property
    def _signs(self) -> SignSearch:
        if self.engine != "faiss":
            raise BadInput(f"the index {self.path} has no signs; build it with --engine faiss, or search with numpy")
        with _usable(self.path):
            signs = SignSearch(self.path, self.lists)
            if signs.shape != (self.count, self.dims // 8):
                raise ValueError(
                    f"signs.npy holds {list(signs.shape)} for {self.count} vectors of {self.dims} dimensions"
                )
            return signs

    @functools.cached_property
    def _on_devices(self):
        from pplx_jax.retrieval.device_search import DeviceSearch  # compiles for the devices

        if self._vectors.dtype != np.int8:
            raise BadInput(f"the engine jax compares int8 and binary embeddings, not {self.quantization}; take numpy")
        return DeviceSearch(self._vectors, self._places, self._empty)

    def search(
        self,
        query: np.ndarray,
        k: int = 10,
        *,
        model_fingerprint: str | None = None,
        options: SearchOptions = SearchOptions(),
    ) -> list[dict[str, Any]]:
        """Hits of one query [width]; see `search_batch`."""
        return self.search_batch(np.asarray(query)[None], k, model_fingerprint=model_fingerprint, options=options)[0]

    def search_batch(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        model_fingerprint: str | None = None,
        options: SearchOptions = SearchOptions(),
    ) -> list[list[dict[str, Any]]]:
        """The k best texts of each query; of an index of chunks, the k best documents, each by its best chunk.

        Args:
            queries: [Q, width], quantized as the index is.
            k: hits wanted; fewer come back from a smaller index.
            model_fingerprint: the model that made the queries, checked where given.
            options: how.

        Returns:
            For each query its hits, best first: {"id", "score", "text", "path", "line", ...}, see `grouping.hits` for
            those of chunks; path and line are None where the input had none.

        Raises:
            BadInput: the queries are of another model, or see `nearest`.
        """
        if model_fingerprint not in (None, self.model_fingerprint):
            raise BadInput(
                f"the query was encoded by model {model_fingerprint}, the index {self.path} by "
                f"{self.model_fingerprint}; encode it with {self.model}"
            )
        if self.has_chunks:
            from pplx_jax.retrieval.grouping import grouped_hits

            return grouped_hits(self, queries, k, options)
        found = zip(*self.nearest(queries, k, options), strict=True)
        return [self.hits(numbers, scores) for numbers, scores in found]

    def hits(self, numbers: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """What is known of vectors [K] with their scores [K], without those of number -1."""
        return [
            {"id": row["id"], "score": float(score), "text": row["text"], "path": None, "line": None}
            | {name: row[name] for name in _HIT_FIELDS if name in row}
            for row, score in zip(self.rows(numbers[numbers >= 0]), scores[numbers >= 0], strict=True)
        ]

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """What `embed` wrote of each vector int64 [n]. Raises BadInput where a line is damaged."""
        found: list[dict[str, Any]] = [{}] * len(numbers)
        shards = self._vectors.shard_of(numbers)
        for shard in np.unique(shards):
            with _usable(self.path), open(self.path / f"{shard:05d}.jsonl", "rb") as file:
                for place in np.flatnonzero(shards == shard):
                    file.seek(self._offsets[numbers[place]])
                    try:
                        found[place] = parse_described(file.readline())
                    except ValueError as error:
                        raise ValueError(f"{shard:05d}.jsonl, vector {numbers[place]}: {error}") from None
        return found

    def chunks_of(self, document: int, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and scores of a document's chunks for a query [width], best first, those of empty texts left out."""
        begin, end = np.searchsorted(self.documents, [document, document + 1])
        numbers = np.arange(begin, end)[~self._empty[begin:end]]
        scores = similarity(query[None], self._vectors.take(numbers), self.quantization == "ubinary")[0]
        order = np.lexsort((self._places[numbers], -scores))
        return numbers[order], scores[order]

    def encode_queries(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        """Vectors [Q, width] of queries, quantized as the index is.

        Raises:
            BadInput: a text is empty, or the model is not the one of the index.
        """
        for text in texts:
            if not text.strip():
                raise BadInput("the query is empty; give some text to search for")
        if encoder.fingerprint != self.model_fingerprint:
            raise BadInput(
                f"the index {self.path} was made by model {self.model_fingerprint}, {self.model} is now "
                f"{encoder.fingerprint}; embed and index again"
            )
        pooled = encoder.encode(texts, quantization="none", dims=self.dims)
        return quantize(pooled, self.quantization, self.bit_order)

    def encode_query(self, text: str, encoder: Encoder) -> np.ndarray:
        """The vector [width] of one query; see `encode_queries`."""
        return self.encode_queries([text], encoder)[0]


@contextlib.contextmanager
def _usable(path: pathlib.Path):
    """Turns what is wrong with the files of an index into BadInput."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"no index in {path}: {error.filename} is missing; make one with `index`") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(f"the index {path} cannot be used ({error}); make it again with `index`") from None
