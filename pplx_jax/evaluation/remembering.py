"""An encoder that encodes no text twice: sets of one evaluation share passages."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from pplx_jax.retrieval.encoder import Encoder, Limits


class Remembering:
    """The `Encoder` it wraps, with the vectors of every text and document asked for so far.

    Args:
        model: the encoder.
        most: texts and documents to remember, the first ones; None for all.
    """

    def __init__(self, model: Encoder, most: int | None = None):
        self._model, self._most = model, most
        self._known: dict[Hashable, np.ndarray] = {}
        self.fingerprint = model.fingerprint

    @property
    def config(self) -> Limits:
        return self._model.config

    @property
    def dims(self) -> int:
        return self._model.dims

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.count_tokens(texts)

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return np.stack(self._recall("text", list(texts), self._model.encode, options))

    def encode_documents(self, documents: Sequence[Sequence[str]], **options: Any) -> list[np.ndarray]:
        return self._recall("document", [tuple(chunks) for chunks in documents], self._model.encode_documents, options)

    def _recall(self, kind: str, items: list, encode: Callable, options: dict[str, Any]) -> list[np.ndarray]:
        how = (kind, *sorted(options.items()))
        missing = [item for item in dict.fromkeys(items) if (how, item) not in self._known]
        found = dict(zip(missing, encode(missing, **options), strict=True)) if missing else {}
        for item in missing[: None if self._most is None else max(self._most - len(self._known), 0)]:
            self._known[how, item] = found[item]
        return [found[item] if item in found else self._known[how, item] for item in items]
