"""Import of Qwen3, Qwen3-Embedding and pplx-embed folders: the model as it computes, bit for bit as it is stored.

One tensor is in memory at a time beside the result, whatever the number of shards. No code of the folder is run,
and no pickle is opened.
"""

import dataclasses
import gc
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.convert import source_parity
from pplx_jax.convert.memory import PeakMemory
from pplx_jax.convert.packages import require_packages
from pplx_jax.convert.param_map import HEAD, from_torch_layout, mismatches, torch_shapes
from pplx_jax.convert.source_config import CONFIG, Source, read_source
from pplx_jax.convert.stored_tensors import StoredTensor, stored_tensors
from pplx_jax.convert.weights import DTYPES
from pplx_jax.data.tokenizer_vocabulary import TokenizerVocabulary
from pplx_jax.data.vocabulary import TOKENIZER, Vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.model_folder import ModelFolder, save_model
from pplx_jax.models.qwen3 import Qwen3Config
from pplx_jax.output_folder import require_free

_PREFIX = "model."
_MOST_PROBLEMS = 40
IMPORTED = "imported"  # the stage of such a model folder


def import_hf(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    mask_token: str | None = None,
    separator_token: str | None = None,
    no_parity: bool = False,
) -> dict[str, Any]:
    """Writes a model folder that a recipe starts from, `Embedder.load` opens and `export_hf` turns back.

    The folder takes its name only after parity holds: hidden states and int8 embeddings are those of PyTorch, in
    the source's own mask and, for a causal source, in the bidirectional one too.

    Args:
      source: a folder of safetensors, `config.json` and `tokenizer.json`.
      output: the folder to write; it must not exist, or be empty.
      dtype: of the weights kept, "float32" or "bfloat16".
      mask_token: name of the token that diffusion masks with; see `data/tokenizer_vocabulary.py` where None.
      separator_token: name of the token between chunks; the same.
      no_parity: skip the comparison, which needs PyTorch and runs the model twice.

    Returns:
      `tensors` (how many were read), `parity` (`max_abs_diff`, `int8_equal_share`; None where skipped) and
      `peak_bytes` (growth of this process's peak resident memory while weights were read and written).

    Raises:
      BadInput: the source has a feature that is not supported, tensors are missing, left over, damaged or not finite,
        `output` holds something, or a package that parity takes is not installed.
      RuntimeError: what was imported does not compute what the source does.
    """
    source, output = pathlib.Path(source), pathlib.Path(output).absolute()
    require_free(output, "empty folder", lambda _: False)
    if not no_parity:
        require_packages("the parity report", "torch", "transformers", otherwise=", or give --no_parity")
    plan = _Plan.of(source, dtype, mask_token, separator_token)
    states = None
    if not no_parity:
        # Before our weights are read, and freed by then: the two are never in memory together.
        states = source_parity.source_states(source, plan.described, plan.vocabulary, dtype)
        gc.collect()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}-partial-", dir=output.parent) as scratch:
        partial = pathlib.Path(scratch) / "model"
        memory = PeakMemory()
        model = plan.load()
        save_model(partial, model.config, model.vocabulary, model.params, stage=model.stage, kind=model.kind)
        peak = memory.growth
        parity = None
        if states is not None:
            parity = dataclasses.asdict(source_parity.check_import(model, states))
        os.replace(partial, output)
    return {"tensors": len(plan.tensors), "parity": parity, "peak_bytes": peak}


def read_model(
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    sharding: Any = None,
) -> ModelFolder:
    """A Hugging Face folder as a model, without importing it first.

    Args:
      folder: as `import_hf`'s source.
      dtype: of the parameters.
      sharding: (path of a parameter, its shape) -> the `jax.sharding.Sharding` it is moved to as soon as it is
        read, a leaf at a time; on the host as NumPy arrays where None.

    Raises:
      BadInput: as `import_hf`.
    """
    plan = _Plan.of(pathlib.Path(folder), dtype)
    if sharding is None:
        return plan.load()

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        # Each process hands over the parts that its own devices hold.
        return jax.make_array_from_callback(leaf.shape, sharding(path, leaf.shape), leaf.__getitem__)

    return plan.load(place)


def read_config(folder: str | os.PathLike[str]) -> Qwen3Config:
    """The encoder that `read_model` gives; everything is checked and no weight is read.

    Raises:
      BadInput: as `import_hf`.
    """
    return _Plan.of(pathlib.Path(folder), "float32").described.config


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A source whose every file was checked, and no tensor read."""

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
    ) -> "_Plan":
        if dtype not in DTYPES:
            raise BadInput(f"dtype={dtype!r} of an import is not one of {', '.join(DTYPES)}")
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
                f"{described.config.vocab_size} rows; are the two of one model?"
            )
        half = "bfloat16" in (dtype, *{tensor.dtype.name for tensor in tensors.values()})
        precision = "bfloat16" if half else "float32"
        config = dataclasses.replace(described.config, dtype=precision, tied=HEAD.key not in tensors)
        return cls(dataclasses.replace(described, config=config), vocabulary, tensors, dtype)

    def load(self, place: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf) -> ModelFolder:
        config = self.described.config
        params = from_torch_layout(self.tensors, config, dtype=DTYPES[self.dtype][0], place=place)
        return ModelFolder(config, self.vocabulary, params, self.described.kind, IMPORTED)


def _tensors(folder: pathlib.Path, described: Source) -> dict[str, StoredTensor]:
    """Every tensor under the keys of `param_map`; all that is wrong with them in one error."""
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
        logging.info("%s has no head of its own; the embedding table serves as one in diffusion", folder)
    elif table is None or head.shape != table.shape:
        problems.append(f"{HEAD.key} has shape {head.shape}, not the embedding table's")
    elif not head.equals(table):
        if described.tied:
            problems.append(f"{HEAD.key} is not the embedding table, though {CONFIG} has tie_word_embeddings")
        tensors[HEAD.key] = head
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise BadInput(f"weights of {folder}: {'; '.join(shown + more)}; download the folder again, or mend it")
    return tensors
