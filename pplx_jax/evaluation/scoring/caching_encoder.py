"""An encoder that encodes no text twice: sets share passages, and quantizations and widths share vectors."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.progress import Progress
from pplx_jax.inference.encoder import Encoder, Limits, quantizations, query_encoder
from pplx_jax.inference.overflow import Overflow, TooLong
from pplx_jax.kernels.quantization import BitOrder, Quantization, quantize

_BLOCK = 4096  # texts encoded at once: enough to sort by length, and to tell how far it is
_MOST_BYTES = 8 << 30  # of vectors that are kept; the texts of Wikipedia are not remembered


class Remembering:
    """The `Encoder` it wraps, with the pooled vectors of the texts and documents asked for so far, 8 GiB at most.

    Args:
        model: the encoder.
        progress: whether to report on standard error how far it is.
    """

    def __init__(self, model: Encoder, *, progress: bool = False):
        self._model, self._progress = model, progress
        self._known: dict[Hashable, np.ndarray] = {}
        self._bytes = 0
        self._asked: set[Hashable] = set()
        self.fingerprint = model.fingerprint
        self.quantizations = quantizations(model)

    @property
    def config(self) -> Limits:
        return self._model.config

    @property
    def dims(self) -> int:
        return self._model.dims

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.count_tokens(texts)

    def encode(self, texts: Iterable[str], **options: Any) -> np.ndarray:
        return self._stacked("text", self._model.encode, texts, **options)

    def encode_queries(self, texts: Iterable[str], **options: Any) -> np.ndarray:
        return self._stacked("query", query_encoder(self._model), texts, **options)

    def encode_documents(
        self,
        documents: Iterable[Sequence[str]],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        **limits: Any,
    ) -> list[np.ndarray]:
        items = [tuple(chunks) for chunks in documents]
        pooled = self._recall("document", self._model.encode_documents, items, **limits)
        if not pooled:
            return []
        flat = quantize(np.concatenate(pooled)[:, :dims], quantization, bit_order)
        return np.split(flat, np.cumsum([len(chunks) for chunks in items])[:-1])

    def forget(self) -> None:
        """Drops what has not been asked for since the last call: the texts of the set before, not those shared."""
        self._known = {key: vector for key, vector in self._known.items() if key in self._asked}
        self._bytes = sum(vector.nbytes for vector in self._known.values())
        self._asked = set()

    def _stacked(
        self,
        kind: str,
        encode: Callable,
        texts: Iterable[str],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        **limits: Any,
    ) -> np.ndarray:
        pooled = self._recall(kind, encode, list(texts), **limits)
        vectors = np.stack(pooled) if pooled else np.zeros((0, self.dims), np.float32)
        return quantize(vectors[:, :dims], quantization, bit_order)

    def _recall(
        self, kind: str, encode: Callable, items: list, *, overflow: Overflow = "error", overlap: int | None = None
    ) -> list[np.ndarray]:
        """The pooled vectors of the items, at full width and without quantization."""
        keys = [(kind, overflow, overlap, item) for item in items]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        new: dict[Hashable, np.ndarray] = {}
        with Progress("encode", len(missing), kind, enabled=self._progress and bool(missing)) as progress:
            for begin in range(0, len(missing), _BLOCK):
                block = missing[begin : begin + _BLOCK]
                texts = [key[-1] for key in block]
                try:
                    vectors = encode(texts, quantization="none", overflow=overflow, overlap=overlap)
                except TooLong as error:
                    raise error.at(keys.index(block[error.place])) from None
                new |= zip(block, vectors, strict=True)
                progress.update(begin + len(block))
        for key, vector in new.items():
            if self._bytes + vector.nbytes <= _MOST_BYTES:
                self._known[key] = vector
                self._bytes += vector.nbytes
        self._asked.update(key for key in keys if key in self._known)
        return [new[key] if key in new else self._known[key] for key in keys]
