"""The protocol of a model in retrieval and evaluation. `inference.embedder.Embedder` implements it."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol, get_args

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import DOCUMENT
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import Quantization

_SOON_TOKENIZED = 1 << 16  # characters


class Limits(Protocol):
    """The part of a model's configuration that limits its inputs."""

    @property
    def max_length(self) -> int:
        """Maximum tokens of an input."""
        ...


class Encoder(Protocol):
    """Encodes texts as vectors.

    Attributes:
        fingerprint: of the weights and the vocabulary. Vectors of equal fingerprints are comparable.
        config: its `max_length` limits an input. `overflow` says what happens to longer inputs.
    """

    fingerprint: str

    @property
    def config(self) -> Limits:
        """The limits of the model."""
        ...

    @property
    def dims(self) -> int:
        """Number of dimensions of the vectors."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the number of tokens of each text [n], without separators."""
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
        """Returns one vector per text, [n, dims]."""
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
        """Returns one vector per chunk, encoded in its document: [n_chunks, dims] for each document."""
        ...


def query_encoder(model: Encoder) -> Callable[..., np.ndarray]:
    """Returns the method that encodes queries: `encode_queries` if the model has it (for prompts), else `encode`."""
    return getattr(model, "encode_queries", model.encode)


def document_encoder(model: Encoder) -> Callable[..., np.ndarray]:
    """Returns the method that encodes texts as documents: with the model's prompt for them, if it has one."""
    encode: Callable[..., np.ndarray] = model.encode
    return functools.partial(encode, prompt_name=DOCUMENT) if DOCUMENT in getattr(model, "prompts", {}) else encode


def quantizations(model: Encoder) -> tuple[Quantization, ...]:
    """Returns the quantizations that a model supports, its default first; all if the model does not say."""
    return getattr(model, "quantizations", get_args(Quantization))


def check_quantization(model: Encoder, quantization: str) -> None:
    """Checks that the model supports a quantization.

    Raises:
        BadInput: it is not one of `quantizations`.
    """
    known = quantizations(model)
    if quantization not in known:
        raise BadInput(f"quantization {quantization!r} is not one of {', '.join(known)}, which this model supports")


def tokens_over_limit(model: Encoder, chunks: Sequence[str]) -> int:
    """Returns a number of tokens that a document has at least, if its length alone shows that it is over the limit.

    So a text of many megabytes is refused without tokenizing it. 0 says nothing: then the tokens decide, which also
    holds for every text that is tokenized within milliseconds.
    """
    vocabulary, limit = getattr(model, "vocabulary", None), model.config.max_length
    if vocabulary is None or sum(map(len, chunks)) < _SOON_TOKENIZED:
        return 0
    tokens = document_tokens([vocabulary.least_tokens(chunk) for chunk in chunks])
    return tokens if tokens > limit else 0


def document_tokens(counts: Sequence[int] | np.ndarray) -> int:
    """Returns the tokens of a document. Separator rule: one separator token between adjacent chunks, none elsewhere."""
    return int(sum(counts)) + max(len(counts) - 1, 0)
