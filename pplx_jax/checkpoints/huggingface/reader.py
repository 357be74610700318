"""Reads Hugging Face folders of Qwen3, Qwen3-Embedding and pplx-embed models. The weights keep every bit.

Besides the result, only one tensor is in memory at a time. No code of the folder is run, and no pickle is opened.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpoints.huggingface.config import CONFIG, Source, read_source
from pplx_jax.checkpoints.huggingface.name_map import HEAD, from_torch_layout, mismatches, torch_shapes
from pplx_jax.checkpoints.huggingface.safetensors import WRITTEN_DTYPES, StoredTensor, stored_tensors
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary
from pplx_jax.data.tokens.vocabulary import TOKENIZER, Vocabulary
from pplx_jax.models.transformer import Qwen3Config

_PREFIX = "model."
_MOST_PROBLEMS = 40
IMPORTED = "imported"  # the stage of the model folder that an import writes


def read_model(
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    sharding: Any = None,
) -> LoadedModel:
    """Reads a Hugging Face folder as a model, without importing it first.

    Args:
      folder: like the source of `import_hf`.
      dtype: of the parameters.
      sharding: maps (path of a parameter, its shape) to the `jax.sharding.Sharding` that it is moved to as soon as it
        is read; None for NumPy arrays on the host.

    Raises:
      BadInput: as in `import_hf`.
    """
    plan = ImportPlan.of(local_copy(as_path(folder)), dtype)
    if sharding is None:
        return plan.load()

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        # Each process supplies the shards of its own devices.
        return jax.make_array_from_callback(leaf.shape, sharding(path, leaf.shape), leaf.__getitem__)

    return plan.load(place)


def read_config(folder: str | os.PathLike[str]) -> Qwen3Config:
    """Returns the configuration that `read_model` would return. All checks run, but no weights are read.

    Raises:
      BadInput: as in `import_hf`.
    """
    return ImportPlan.of(local_copy(as_path(folder)), "float32").described.config


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """A folder whose files are all checked, before any tensor is read."""

    described: Source
    vocabulary: Vocabulary
    tensors: dict[str, StoredTensor]
    dtype: str

    @classmethod
    def of(
        cls,
        folder: pathlib.Path,
        dtype: str,
        mask_token: str | None = None,
        separator_token: str | None = None,
    ) -> "ImportPlan":
        if dtype not in WRITTEN_DTYPES:
            raise BadInput(f"dtype={dtype!r} of an import is not one of {', '.join(WRITTEN_DTYPES)}")
        if not folder.is_dir():
            raise BadInput(f"no model in {folder}: the folder does not exist; give a folder with a {CONFIG}")
        described = read_source(folder)
        tensors = _tensors(folder, described)
        if not (folder / TOKENIZER).exists():
            raise BadInput(f"{folder} has no {TOKENIZER}; copy it from where the model was published")
        vocabulary = TokenizerVocabulary.read(folder, mask_token=mask_token, separator_token=separator_token)
        if vocabulary.size > described.config.vocab_size:
            raise BadInput(
                f"{folder}: {TOKENIZER} has ids up to {vocabulary.size - 1}, the embedding table only "
                f"{described.config.vocab_size} rows; use the tokenizer of the same model"
            )
        half = "bfloat16" in (dtype, *{tensor.dtype.name for tensor in tensors.values()})
        precision = "bfloat16" if half else "float32"
        config = dataclasses.replace(described.config, dtype=precision, tied=HEAD.key not in tensors)
        return cls(dataclasses.replace(described, config=config), vocabulary, tensors, dtype)

    def load(self, place: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf) -> LoadedModel:
        config = self.described.config
        params = from_torch_layout(self.tensors, config, dtype=WRITTEN_DTYPES[self.dtype][0], place=place)
        return LoadedModel(config, self.vocabulary, params, self.described.kind, IMPORTED)


def _tensors(folder: pathlib.Path, described: Source) -> dict[str, StoredTensor]:
    """Returns the tensors by the keys of `name_map.TABLE`. One error names all problems."""
    stored, problems = stored_tensors(folder)
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in stored) else ""
    tensors = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    head = stored.get(HEAD.key)
    tensors.pop(HEAD.key, None)
    problems += [f"{key} is left over" for key in stored if not key.startswith(prefix) and key != HEAD.key]
    if stored:
        problems += [prefix + problem for problem in mismatches(tensors, torch_shapes(described.config))]
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        logging.warning("%s: weights of several dtypes", folder)
    table = tensors.get("embed_tokens.weight")
    if head is None:
        logging.info("%s has no separate head; the embedding table is the head in diffusion training", folder)
    elif table is None or head.shape != table.shape:
        problems.append(f"{HEAD.key} has shape {head.shape}, not that of the embedding table")
    elif not head.equals(table):
        if described.tied:
            problems.append(f"{HEAD.key} differs from the embedding table, but {CONFIG} sets tie_word_embeddings")
        tensors[HEAD.key] = head
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise BadInput(f"weights of {folder}: {'; '.join(shown + more)}; download the folder again")
    return tensors
