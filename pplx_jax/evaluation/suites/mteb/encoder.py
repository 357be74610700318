"""An encoder that implements mteb's `EncoderProtocol`, for tasks other than retrieval (STS, clustering, ...)."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pplx_jax.evaluation.scoring.system import System
from pplx_jax.evaluation.suites.mteb.search import DOCUMENTS_PER_BLOCK, Search, encode
from pplx_jax.evaluation.suites.mteb.texts import Prompts, task_instruction
from pplx_jax.inference.encoder import Encoder
from pplx_jax.kernels.quantization import unpack_bits
from pplx_jax.retrieval.search import similarity


class EncoderSearch(Search):
    """A model for any text task of mteb. Retrieval uses `Search`.

    Embeddings are returned as float32 with integer values, because mteb computes with them in ways that overflow int8.
    Packed bits are returned as -1 and +1, because mteb multiplies embeddings.
    """

    def __init__(self, system: System, prompts: Prompts, meta: Any, scratch: pathlib.Path | None = None):
        super().__init__(system, prompts, meta, scratch)
        if system.encoder is None:
            raise ValueError("BM25 has no encoder; use `Search`")
        self._encoder: Encoder = system.encoder

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Returns float32 embeddings [n, dims] of batches of texts, in order.

        Raises:
            BadInput: a text is over the model's limit.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind = getattr(prompt_type, "value", "query")
        fill = self.prompts.documents if kind == "document" else self.prompts.queries
        texts = fill(texts, task_instruction(task_metadata, kind))
        settings = self.system.settings
        ids = [f"{task_metadata.name}, text {index}" for index in range(len(texts))]
        blocks = [slice(begin, begin + DOCUMENTS_PER_BLOCK) for begin in range(0, len(texts), DOCUMENTS_PER_BLOCK)]
        vectors = np.concatenate([encode(self._encoder, texts[block], ids[block], settings) for block in blocks])
        return (unpack_bits(vectors) if settings.quantization == "ubinary" else vectors).astype(np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Returns the cosine of every pair as a torch tensor [n, m], which mteb expects."""
        import torch

        return torch.from_numpy(similarity(_rows(embeddings1), _rows(embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Returns the cosine of each row with its counterpart as a torch tensor [n]."""
        import torch

        pairs = zip(_rows(embeddings1), _rows(embeddings2), strict=True)
        return torch.tensor([similarity(a[None], b[None]).item() for a, b in pairs])


def _rows(embeddings: Any) -> np.ndarray:
    return np.atleast_2d(np.asarray(embeddings, np.float32))
