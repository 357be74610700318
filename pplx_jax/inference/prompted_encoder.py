"""An encoder with other prompts, such as those of one evaluation task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.prompts import DOCUMENT, QUERY, checked_prompts, prompted_fingerprint
from pplx_jax.inference.encoder import Encoder, Limits, quantizations, query_encoder


class PromptedEncoder:
    """Wraps an `Encoder` that takes `prompt`, and gives it these prompts in place of its own.

    Args:
        encoder: an `Embedder`, a sentence-transformers model, or a wrapper of one.
        prompts: "query" and "document" -> text, "" for none. What is left out stays that of the encoder.

    Raises:
        BadInput: a prompt is not a text.
    """

    def __init__(self, encoder: Encoder, prompts: Mapping[str, str]):
        checked_prompts(prompts, "prompts")
        self._encoder = encoder
        self._options: dict[str, dict[str, Any]] = {name: {"prompt": text} for name, text in prompts.items()}
        self.fingerprint = prompted_fingerprint(encoder.fingerprint, prompts)
        self.quantizations = quantizations(encoder)
        self.dims = encoder.dims
        self.prompts = {**getattr(encoder, "prompts", {}), **prompts}

    @property
    def config(self) -> Limits:
        return self._encoder.config

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.count_tokens(texts)

    def encode(self, texts: Iterable[str], *, prompt_name: str | None = None, **options: Any) -> np.ndarray:
        if prompt_name is not None:
            options = {**self._options.get(prompt_name, {"prompt_name": prompt_name}), **options}
        return self._encoder.encode(list(texts), **options)

    def encode_queries(self, queries: Iterable[str], **options: Any) -> np.ndarray:
        return query_encoder(self._encoder)(list(queries), **{**self._options.get(QUERY, {}), **options})

    def encode_documents(self, documents: Iterable[Sequence[str]], **options: Any) -> list[np.ndarray]:
        return self._encoder.encode_documents(list(documents), **{**self._options.get(DOCUMENT, {}), **options})
