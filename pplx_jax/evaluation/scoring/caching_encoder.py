"""An encoder with a cache: sets share passages, and settings share pooled vectors, so no text is encoded twice."""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.progress import Progress
from pplx_jax.inference.encoder import Encoder, Limits, document_tokens, quantizations, query_encoder, tokens_over_limit
from pplx_jax.inference.overflow import SHORTEN, Overflow, TooLong
from pplx_jax.kernels.quantization import BitOrder, Quantization, quantize

_BLOCK = 4096  # texts encoded at once: enough to sort by length, and to report progress
_BYTES_PER_TOKEN = 2  # hardly any text has fewer
_MOST_BYTES = 8 << 30  # of cached vectors; a corpus like Wikipedia does not fit and is encoded again


class CachingEncoder:
    """Wraps an `Encoder` and caches up to 8 GiB of pooled vectors of texts and documents.

    Args:
        model: the encoder.
        progress: whether to report progress on standard error.
    """

    def __init__(self, model: Encoder, *, progress: bool = False):
        self._model, self._progress = model, progress
        self._cached: dict[Hashable, np.ndarray] = {}
        self._bytes = 0
        self._requested: set[Hashable] = set()
        self.fingerprint = model.fingerprint
        self.quantizations = quantizations(model)
        self.prompts = getattr(model, "prompts", {})

    @property
    def config(self) -> Limits:
        return self._model.config

    @property
    def dims(self) -> int:
        return self._model.dims

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.count_tokens(texts)

    def encode(self, texts: Iterable[str], *, prompt_name: str | None = None, **options: Any) -> np.ndarray:
        prompted: dict[str, Any] = {} if prompt_name is None else {"prompt_name": prompt_name}
        return self._encode("text", self._model.encode, texts, **prompted, **options)

    def encode_queries(self, texts: Iterable[str], **options: Any) -> np.ndarray:
        return self._encode("query", query_encoder(self._model), texts, **options)

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
        pooled = self._pooled("document", self._model.encode_documents, items, **limits)
        if not pooled:
            return []
        flat = quantize(np.concatenate(pooled)[:, :dims], quantization, bit_order)
        return np.split(flat, np.cumsum([len(chunks) for chunks in items])[:-1])

    def drop_unused(self) -> None:
        """Drops the vectors that were not requested since the last call, such as the texts of the set before."""
        self._cached = {key: vector for key, vector in self._cached.items() if key in self._requested}
        self._bytes = sum(vector.nbytes for vector in self._cached.values())
        self._requested = set()

    def _encode(
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
        pooled = self._pooled(kind, encode, list(texts), **limits)
        vectors = np.stack(pooled) if pooled else np.zeros((0, self.dims), np.float32)
        return quantize(vectors[:, :dims], quantization, bit_order)

    def _refuse_too_long(self, items: Sequence[str | tuple[str, ...]]) -> None:
        """Raises `TooLong` with the number of all items over the limit, before any is encoded.

        The tokens of prompts do not count here, and only long items are tokenized. Any other item over the limit is
        found when it is encoded.
        """
        limit, sizes = self.config.max_length, {}
        documents = [item if isinstance(item, tuple) else (item,) for item in items]
        long = [place for place, chunks in enumerate(documents) if _bytes(chunks) > _BYTES_PER_TOKEN * limit]
        surely = {place: found for place in long if (found := tokens_over_limit(self._model, documents[place]))}
        counted = [place for place in long if place not in surely]
        for begin in range(0, len(counted), _BLOCK):
            block = counted[begin : begin + _BLOCK]
            counts = iter(self.count_tokens([chunk for place in block for chunk in documents[place]]))
            for place in block:
                sizes[place] = document_tokens(list(itertools.islice(counts, len(documents[place]))))
        sizes |= surely
        if over := sorted(place for place, size in sizes.items() if size > limit):
            told = {"at_least": over[0] in surely, "over": (len(over), len(items))}
            raise TooLong(over[0], sizes[over[0]], limit, fix=SHORTEN, **told)

    def _pooled(
        self,
        kind: str,
        encode: Callable,
        items: list,
        *,
        overflow: Overflow = "error",
        overlap: int | None = None,
        **prompts: str,
    ) -> list[np.ndarray]:
        """Returns the pooled vectors of the items, at full width and without quantization."""
        encode = functools.partial(encode, **prompts)
        keys = [(kind, *prompts.items(), overflow, overlap, item) for item in items]
        missing = [key for key in dict.fromkeys(keys) if key not in self._cached]
        new: dict[Hashable, np.ndarray] = {}
        if overflow == "error":
            try:
                self._refuse_too_long([key[-1] for key in missing])
            except TooLong as error:
                raise error.at(keys.index(missing[error.place])) from None
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
                self._cached[key] = vector
                self._bytes += vector.nbytes
        self._requested.update(key for key in keys if key in self._cached)
        return [new[key] if key in new else self._cached[key] for key in keys]


def _bytes(chunks: Sequence[str]) -> int:
    return sum(len(chunk.encode(errors="surrogatepass")) for chunk in chunks)
