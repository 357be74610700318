"""A whole recipe: raw text to two trained, scored, exported and searchable models, each phase done once."""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
from absl import logging

from pplx_jax.checkpointing import load_params, read_json, write_json
from pplx_jax.contrastive.mining import Mining, mine_table
from pplx_jax.data.token_files import TokenTable
from pplx_jax.data.vocabulary import Vocabulary, train_vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.evaluation.folder import evaluate, evaluate_bm25
from pplx_jax.model_folder import load_model, save_model
from pplx_jax.models.embedder import Embedder
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.stages.merge import Merge, slerp
from pplx_jax.train import Training, train
from pplx_jax.train_state import initial_params

STARTS_FROM = {"diffusion": None, "pair": "diffusion", "contextual": "pair", "triplet": "pair"}
RECIPE = "recipe.json"


class Corpus(Protocol):
    """Where a recipe's text comes from: writes the corpus files that `data.tasks` reads."""

    def build(self, output: pathlib.Path) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Token limits of a recipe's texts; longer ones are split (text) or cut (the others), and counted.

    Attributes:
      text: windows of the diffusion stage.
      query: of the contrastive stages.
      document: of the pair and triplet stages.
      chunk: of the contextual stage.
      chunks: most chunks of a document.
    """

    text: int
    query: int
    document: int
    chunk: int
    chunks: int
