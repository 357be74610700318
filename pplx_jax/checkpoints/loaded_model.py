"""A model in memory, read from a model folder or a Hugging Face folder."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pplx_jax.core import parameter_trees
from pplx_jax.core.prompts import prompted_fingerprint
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
      prompts: name -> text before queries ("query"), documents ("document") or other texts; see `core.prompts`.
    """

    config: Qwen3Config
    vocabulary: Vocabulary
    params: dict[str, Any]
    kind: str
    stage: str
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that embeddings depend on: parameters, vocabulary, configuration, prompts.

        Embedding folders and indexes store it to recognize their model.
        """
        return prompted_fingerprint(self.unprompted_fingerprint, self.prompts)

    @property
    def unprompted_fingerprint(self) -> str:
        """The fingerprint of the model without prompts."""
        facts = [self.vocabulary.fingerprint, self.config.computing, parameter_trees.digest(self.params)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
