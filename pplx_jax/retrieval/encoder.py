"""What retrieval and evaluation ask of a model; `pplx_jax.models.embedder.Embedder` is one."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pplx_jax.models.overflow import Overflow
from pplx_jax.models.quantization import Quantization


class Limits(Protocol):
    """The part of a model's configuration that bounds its inputs."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest input."""
        ...


class Encoder(Protocol):
    """Text to vectors.

    Attributes:
        fingerprint: names the weights and the vocabulary; equal fingerprints give comparable vectors.
        config: its `max_length` bounds an input; `overflow` says what becomes of more.
    """

    fingerprint: str

    @property
    def config(self) -> Limits:
        """The configuration."""
        ...

    @property
    def dims(self) -> int:
        """Full width of the vectors."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text [n], no separators among them."""
        ...

    def encode(
        self,
        texts: Sequence[str],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        overflow: Overflow = "error",
        overlap: int | None = None,
    ) -> np.ndarray:
        """One vector a text: [n, dims]."""
        ...

    def encode_documents(
        self,
        documents: Sequence[Sequence[str]],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        overflow: Overflow = "error",
        overlap: int | None = None,
    ) -> list[np.ndarray]:
        """One vector a chunk, each having seen its whole document: [n_chunks, dims] a document."""
        ...


def load_encoder(model: str | os.PathLike[str]) -> Encoder:
    """Loads a model folder.

    Raises:
        BadInput: there is no readable model.
    """
    from pplx_jax.models.embedder import Embedder  # pulls in the whole model code

    return Embedder.load(model)


def document_tokens(counts: Sequence[int] | np.ndarray) -> int:
    """Tokens of a document whose chunks have `counts` tokens, with one separator between neighbours."""
    return int(sum(counts)) + max(len(counts) - 1, 0)
