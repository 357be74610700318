"""What every engine does with an index: search it, add and replace documents, delete them.

A document is one row of an embedded file: a text, or a document with all its chunks. Its id is that of the row.
"""

import abc
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.encoder import Encoder
from pplx_jax.retrieval.base_index import BaseIndex
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.search_options import SearchOptions

Hit = dict[str, Any]


def document_of(row: dict[str, Any]) -> str:
    """Returns the id of the document that a described vector belongs to."""
    return row.get("document", row["id"])


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
