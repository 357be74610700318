"""What retrieval and evaluation ask of a model; `pplx_jax.inference.embedder.Embedder` is one."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol, get_args

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import Quantization


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


def load_encoder(model: str | os.PathLike[str], *, query_prompt: str = "", document_prompt: str = "") -> Encoder:
    """Loads a model folder, a Hugging Face folder of a pplx-embed model, or a sentence-transformers folder of another.

    Args:
        model: the folder; what it holds says which of them it is.
        query_prompt, document_prompt: what stands before every query and document, over what a
            sentence-transformers folder says itself; other models take none.

    Raises:
        BadInput: there is no readable model, or it takes no prompts.
    """
    from pplx_jax.inference.sentence_transformer import SentenceTransformerEncoder, is_foreign

    if is_foreign(model):
        return SentenceTransformerEncoder(model, query_prompt=query_prompt, document_prompt=document_prompt)
    if query_prompt or document_prompt:
        raise BadInput(f"{model} was trained without prompts: leave query_prompt and document_prompt out")
    from pplx_jax.inference.embedder import Embedder  # pulls in the whole model code

    return Embedder.load(model)


def query_encoder(model: Encoder) -> Callable[..., np.ndarray]:
    """What encodes queries: `encode_queries` of a model that treats them apart (prompts), else `encode`."""
    return getattr(model, "encode_queries", model.encode)


def quantizations(model: Encoder) -> tuple[Quantization, ...]:
    """The forms a model's vectors mean something in, its own first: all of them where the model does not say."""
    return getattr(model, "quantizations", get_args(Quantization))


def check_quantization(model: Encoder, quantization: str) -> None:
    """Refuses a form that the model's vectors were not trained for.

    Raises:
        BadInput: it is not one of `quantizations`.
    """
    known = quantizations(model)
    if quantization not in known:
        raise BadInput(f"quantization {quantization!r} is not one of {', '.join(known)}, which this model has")


def document_tokens(counts: Sequence[int] | np.ndarray) -> int:
    """Tokens of a document whose chunks have `counts` tokens, with one separator between neighbours."""
    return int(sum(counts)) + max(len(counts) - 1, 0)
