"""A stage's batch in which every text has the recipe's maximum length: the memory that a plan must allow for."""

import pathlib
from typing import Any

import numpy as np

from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.recipes.recipe import Lengths


class LongestTexts:
    """Replacement for the token table of one batch; all texts have the maximum length. Its tokens take no memory."""

    pad_id, separator_id = 0, 1
    folder = pathlib.Path("the longest texts")

    def __init__(self, lengths: Lengths, examples: int, negatives: int):
        documents = np.arange(examples, dtype=np.int32)
        chunks = lengths.chunks * np.arange(examples + 1)
        others = np.arange(examples * negatives, dtype=np.int32).reshape(examples, negatives) + examples
        self.count = examples
        self.manifest: dict[str, Any] = {}
        self._features: dict[str, Any] = {
            "tokens": _equal(examples, lengths.text),
            "query": _equal(examples, lengths.query),
            "document": _equal(examples * (1 + negatives), lengths.document),
            "negatives": others,
            "document_hash": np.arange(examples * (1 + negatives), dtype=np.int32),
            "chunk": np.zeros(examples, np.int32),
            "chunks": _equal(examples * lengths.chunks, lengths.chunk),
            "chunks_of_document": chunks,
        }
        self._documents = documents

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def __getitem__(self, name: str) -> Any:
        return self._features[name]

    def of_kind(self, kind: str) -> "LongestTexts":
        """Returns the table of one kind of examples; a contextual one refers to documents by index."""
        if kind == "contextual":
            self._features["document"] = self._documents
        return self


def _equal(count: int, length: int) -> Ragged:
    return Ragged(np.broadcast_to(np.int32(2), count * length), np.arange(count + 1, dtype=np.int64) * length)


def text_lengths(segment_ids: np.ndarray) -> list[int]:
    """Returns the number of tokens of every text in packed sequences [B, L]."""
    found: list[int] = []
    for row in segment_ids:
        counts = np.bincount(row)[1:]
        found += counts[counts > 0].tolist()
    return found
