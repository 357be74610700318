"""A model in memory, read from a model folder or a Hugging Face folder."""

import dataclasses
import hashlib
import json
from typing import Any

from pplx_jax.core import parameter_trees
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters.

    Attributes:
      config: the encoder.
      vocabulary: its tokenizer.
      params: nested dict of NumPy arrays.
      kind: "v1", or "context_v1" for a model that was trained to embed chunks in their documents.
      stage: the stage that wrote it.
    """

    config: Qwen3Config
    vocabulary: Vocabulary
    params: dict[str, Any]
    kind: str
    stage: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that embeddings depend on: parameters, vocabulary and configuration.

        Embedding folders and indexes store it to recognize their model.
        """
        facts = [self.vocabulary.fingerprint, self.config.computing, parameter_trees.digest(self.params)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
