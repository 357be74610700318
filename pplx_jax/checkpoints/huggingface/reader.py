"""Reads Hugging Face folders of Qwen3, Qwen2.5, Llama and pplx-embed models, and GGUF files of the first three.

The weights of a folder keep every bit. Quantized weights of a GGUF file are dequantized to float32. Besides the result,
only one tensor is in memory at a time. No code of the source is run, and no pickle is opened.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpoints.huggingface.config import CONFIG, Source, other_pooling, read_source
from pplx_jax.checkpoints.huggingface.gguf_file import SUFFIX, GgufTensor, read_gguf
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
Tensors = dict[str, StoredTensor | GgufTensor]
IMPORTED = "imported"  # the stage of the model folder that an import writes


def read_model(folder: str | os.PathLike[str], *, sharding: Any = None) -> LoadedModel:
    """Reads a Hugging Face folder as a float32 model, without importing it first.

    Args:
      folder: like the source of `import_hf`.
      sharding: maps (path of a parameter, its shape) to the `jax.sharding.Sharding` that it is moved to as soon as it
        is read; None for NumPy arrays on the host.

    Raises:
      BadInput: as in `import_hf`.
    """
    source = local_copy(as_path(folder))
    plan = ImportPlan.of(source, "float32")
    warn_of_pooling(source)
    if sharding is None:
        return plan.load()

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        # Each process supplies the shards of its own devices.
        return jax.make_array_from_callback(leaf.shape, sharding(path, leaf.shape), leaf.__getitem__)

    return plan.load(place)


def warn_of_pooling(source: pathlib.Path) -> None:
    """Logs a warning if the authors of a model pool otherwise than this project."""
    if source.is_dir() and (pooling := other_pooling(source)):
        logging.warning(
            "%s: its authors pool %s and may append an end token; here it pools the mean of all tokens, a start for "
            "training. For their vectors use sentence-transformers, as `eval` does with this folder",
            source,
            pooling,
        )


def read_config(folder: str | os.PathLike[str]) -> Qwen3Config:
    """Returns the configuration that `read_model` would return. All checks run, but no weights are read.

    Raises:
      BadInput: as in `import_hf`.
    """
    return ImportPlan.of(local_copy(as_path(folder)), "float32").described.config


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """A folder or GGUF file that is checked as a whole, before any tensor is read."""

    described: Source
    vocabulary: Vocabulary
    tensors: Tensors
    dtype: str

    @classmethod
    def of(
        cls,
        source: pathlib.Path,
        dtype: str,
        mask_token: str | None = None,
        separator_token: str | None = None,
        pad_token: str | None = None,
        layers: int | None = None,
    ) -> "ImportPlan":
        if dtype not in WRITTEN_DTYPES:
            raise BadInput(f"dtype={dtype!r} of an import is not one of {', '.join(WRITTEN_DTYPES)}")
        if source.suffix == SUFFIX and source.is_file():
            file = read_gguf(source)
            described = file.source
            tensors = _checked(source, described, dict(file.tensors), file.problems)
            given = {"mask": mask_token, "separator": separator_token, "pad": pad_token}
            names = file.names | {role: name for role, name in given.items() if name is not None}
            vocabulary = TokenizerVocabulary.of(source, file.tokenizer, names)
        else:
            described, tensors = _folder_tensors(source)
            if not (source / TOKENIZER).exists():
                raise BadInput(f"{source} has no {TOKENIZER}; copy it from where the model was published")
            vocabulary = TokenizerVocabulary.read(
                source, mask_token=mask_token, separator_token=separator_token, pad_token=pad_token
            )
        if vocabulary.size > described.config.vocab_size:
            raise BadInput(
                f"{source}: {TOKENIZER} has ids up to {vocabulary.size - 1}, the embedding table only "
                f"{described.config.vocab_size} rows; use the tokenizer of the same model"
            )
        half = "bfloat16" in (dtype, *{tensor.dtype.name for tensor in tensors.values()})
        precision = "bfloat16" if half else "float32"
        config = dataclasses.replace(described.config, dtype=precision, tied=HEAD.key not in tensors)
        if layers is not None:
            if not 1 <= layers <= config.layers:
                raise BadInput(f"layers={layers} of an import: {source} has {config.layers}; give 1 to {config.layers}")
            config = dataclasses.replace(config, layers=layers)
            tensors = {key: tensors[key] for key in torch_shapes(config)}
        return cls(dataclasses.replace(described, config=config), vocabulary, tensors, dtype)

    def load(self, place: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf) -> LoadedModel:
        config = self.described.config
        params = from_torch_layout(self.tensors, config, dtype=WRITTEN_DTYPES[self.dtype][0], place=place)
        return LoadedModel(config, self.vocabulary, params, self.described.kind, IMPORTED, self.described.prompts)


def _folder_tensors(folder: pathlib.Path) -> tuple[Source, Tensors]:
    if not folder.is_dir():
        raise BadInput(
            f"no model in {folder}: the folder does not exist; give a folder with a {CONFIG}, or a {SUFFIX} file"
        )
    described = read_source(folder)
    stored, problems = stored_tensors(folder)
    tensors = _checked(folder, described, dict(stored), problems)
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        logging.warning("%s: weights of several dtypes", folder)
    return described, tensors


def _checked(source: pathlib.Path, described: Source, stored: Tensors, problems: list[str]) -> Tensors:
    """Returns the tensors by the keys of `name_map.TABLE`. One error names all problems, those given first."""
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in stored) else ""
    tensors = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    head = stored.get(HEAD.key)
    tensors.pop(HEAD.key, None)
    problems = problems + [f"{key} is left over" for key in stored if not key.startswith(prefix) and key != HEAD.key]
    if stored:
        problems += [prefix + problem for problem in mismatches(tensors, torch_shapes(described.config))]
    table = tensors.get("embed_tokens.weight")
    if head is None:
        logging.info("%s has no separate head; the embedding table is the head in diffusion training", source)
    elif table is None or head.shape != table.shape:
        problems.append(f"{HEAD.key} has shape {head.shape}, not that of the embedding table")
    elif not head.equals(table):  # type: ignore[bad-argument-type]
        if described.tied:
            problems.append(f"{HEAD.key} differs from the embedding table, but {CONFIG} sets tie_word_embeddings")
        tensors[HEAD.key] = head
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise BadInput(f"weights of {source}: {'; '.join(shown + more)}; download them again")
    return tensors
