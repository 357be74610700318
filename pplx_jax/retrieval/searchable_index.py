"""What every index has and does: the description of its vectors, search, and changes of its documents.

A document is one row of an embedded file: a text, or a document with all its chunks. Its id is that of the row.
"""

import abc
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import joined, resolved
from pplx_jax.inference.encoder import Encoder, query_encoder
from pplx_jax.kernels.quantization import BitOrder, Quantization, zero_rows
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder
from pplx_jax.retrieval.search_options import SearchOptions

Hit = dict[str, Any]


class BaseIndex:
    """An opened index.

    Attributes:
        path: its folder.
        model: the model folder that encodes queries.
        model_fingerprint: of the model. Queries of another model are refused.
        dims, quantization, bit_order, count: of the vectors.
        prompts: arguments of `load_encoder`, if the model was loaded with other prompts than its own.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any]):
        self.path = path
        self.model = joined(resolved(path), description["model"])
        self.model_fingerprint: str = description["model_fingerprint"]
        self.dims: int = description["dims"]
        self.quantization: Quantization = description["quantization"]
        self.bit_order: BitOrder = description["bit_order"]
        self.prompts: dict[str, Any] = description.get("prompts", {})
        self.count: int = description["count"]

    def pool_queries(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        """Returns the pooled vectors of queries, float32 [Q, dims].

        Raises:
            BadInput: a text is empty or has no tokens, or the model is not the model of the index.
        """
        if not all(text.strip() for text in texts):
            raise BadInput("the query is empty; give some text to search for")
        if encoder.fingerprint != self.model_fingerprint:
            raise BadInput(
                f"the index {self.path} was made by model {self.model_fingerprint}, {self.model} is now "
                f"{encoder.fingerprint}; embed and index again"
            )
        pooled = query_encoder(encoder)(texts, quantization="none", dims=self.dims)
        if len(empty := np.flatnonzero(zero_rows(pooled))):
            raise BadInput(f"the query {texts[empty[0]]!r} has no tokens in this model; give some text to search for")
        return pooled

    def require_engine(self, options: SearchOptions, *own: str) -> None:
        """Raises BadInput if the options ask for an engine that this index does not have."""
        if options.engine not in (None, *own):
            raise BadInput(f"the index {self.path} is searched by {', '.join(own)}, not by {options.engine}")


class SearchableIndex(BaseIndex, abc.ABC):
    """An opened index of any engine. `pplx_jax.retrieval.open_index` opens one; attributes in `BaseIndex`."""

    @abc.abstractmethod
    def search_pooled(
        self, queries: np.ndarray, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        """Returns the k best texts of each query. In an index of chunks, the k best documents, each by its best chunk.

        Args:
            queries: pooled vectors, float32 [Q, dims].
            k: maximum number of hits, at least 1.
            options: how to search.

        Returns:
            For each query its hits, best first, ties by id descending: {"id", "score", "text", "path", "line", ...};
            path and line are None if the input had none. The hit of a chunk also has "document" and "chunk".

        Raises:
            BadInput: k is less than 1, the engine is not one of this index, or a server does not answer.
        """

    @abc.abstractmethod
    def update(self, embeddings: EmbeddingFolder) -> dict[str, int]:
        """Adds the documents of a finished embedding folder. They replace documents of equal ids.

        Returns:
            {"added": number of vectors, "replaced": number of documents}.

        Raises:
            BadInput: the embeddings are of another model, width or quantization.
        """

    @abc.abstractmethod
    def delete(self, ids: Collection[str]) -> dict[str, int]:
        """Deletes documents.

        Returns:
            {"deleted": number of documents, "missing": number of ids that are not in the index}.
        """

    def search_texts(
        self, texts: Sequence[str], encoder: Encoder, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        """Returns the hits of each text; see `search_pooled` and `pool_queries`."""
        return self.search_pooled(self.pool_queries(texts, encoder), k, options)

    def require_same_form(self, embeddings: EmbeddingFolder) -> None:
        """Raises BadInput if vectors of the embedding folder cannot be compared with those of the index."""
        packed = ("bit_order",) if self.quantization == "ubinary" else ()
        for name in ("model_fingerprint", "dims", "quantization", *packed):
            theirs, ours = getattr(embeddings.settings, name), getattr(self, name)
            if theirs != ours:
                raise BadInput(
                    f"{embeddings.path} has {name}={theirs!r}, the index {self.path} {ours!r}; embed with the model "
                    "and the options of the index"
                )
