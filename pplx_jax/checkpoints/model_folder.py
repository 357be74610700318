"""Model folders: `model.json`, the vocabulary and `checkpoints/`. Stages, merges and imports all write them."""

import dataclasses
import importlib
import os
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from flax import nnx

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.checkpoints.huggingface.reader import read_config, read_model
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.orbax import CHECKPOINTS
from pplx_jax.checkpoints.saved_params import load_params, save_params
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.parameter_trees import named_shapes, require_finite
from pplx_jax.core.paths import absolute
from pplx_jax.core.prompts import checked_prompts
from pplx_jax.core.resume_check import require_same_shapes
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.parameters import abstract_model
from pplx_jax.models.transformer import Qwen3Config

MODEL = "model.json"
FORMAT = 1
AVERAGED_FROM = "averaged_from"  # key of model.json
Kind = Literal["v1", "context_v1"]
_NO_PROMPTS: Mapping[str, str] = types.MappingProxyType({})


def describe_model(
    folder: pathlib.Path,
    config: Qwen3Config,
    vocabulary: Vocabulary,
    *,
    stage: str,
    kind: str | None = None,
    merged_from: Sequence[str] = (),
    averaged_from: Sequence[str] = (),
    prompts: Mapping[str, str] = _NO_PROMPTS,
) -> None:
    """Writes a model folder without its checkpoints.

    Args:
      folder: of the model.
      config: the encoder.
      vocabulary: its tokenizer.
      stage: the stage that made the model.
      kind: of the model; None for "v1".
      merged_from: the merged stages, if the model is a merge.
      averaged_from: the checkpoints, if the model is their average.
      prompts: of the model; see `core.prompts`.
    """
    vocabulary.save(folder)
    description: dict[str, Any] = {
        "format": FORMAT,
        "stage": stage,
        "kind": kind or "v1",
        "model": dataclasses.asdict(config),
    }
    if type(config) is not Qwen3Config:
        description["config_class"] = f"{type(config).__module__}:{type(config).__qualname__}"
    if merged_from:
        description["merged_from"] = list(merged_from)
    if averaged_from:
        description[AVERAGED_FROM] = list(averaged_from)
    if prompts:
        description["prompts"] = dict(prompts)
    write_json(folder / MODEL, description)


def save_model(
    folder: pathlib.Path,
    config: Qwen3Config,
    vocabulary: Vocabulary,
    params: Any,
    *,
    stage: str,
    step: int = 0,
    kind: str | None = None,
    merged_from: Sequence[str] = (),
    averaged_from: Sequence[str] = (),
    prompts: Mapping[str, str] = _NO_PROMPTS,
) -> None:
    """Writes a complete model folder: a merge, an average or an import. See `describe_model` for the arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    save_params(folder, step, params)
    describe_model(
        folder,
        config,
        vocabulary,
        stage=stage,
        kind=kind,
        merged_from=merged_from,
        averaged_from=averaged_from,
        prompts=prompts,
    )


def load_model(folder: str | pathlib.Path) -> LoadedModel:
    """Reads a model folder, one of its checkpoints, or a Hugging Face folder that `import-hf` accepts.

    FOLDER/checkpoints/STEP is one checkpoint, FOLDER/checkpoints the latest. `org/name` or `org/name@revision` is a
    model of the Hugging Face hub (`checkpoints.hub_folder`).

    Raises:
      BadInput: a file is missing or damaged, weights are non-finite or do not have the shapes of the configuration, or
        the vocabulary is larger than the embedding table. The message names the folder.
    """
    folder, step = _model_and_step(find_model(folder))
    if is_published(folder):
        return read_model(folder)
    config, kind, stage, prompts = _read_description(folder)
    vocabulary, params = load_vocabulary(folder), load_params(folder, step)
    shapes = nnx.to_pure_dict(abstract_model(config)[1])
    require_same_shapes(folder, named_shapes(params), named_shapes(shapes))
    require_finite(params, folder)
    if vocabulary.size > config.vocab_size:
        raise BadInput(
            f"{folder}: the vocabulary has {vocabulary.size} pieces, the embedding table only {config.vocab_size} "
            "rows; use the vocabulary of the same model"
        )
    return LoadedModel(config, vocabulary, params, kind, stage, prompts)


def load_config(folder: str | os.PathLike[str]) -> Qwen3Config:
    """Reads the configuration of a folder that `load_model` reads, without its weights.

    Raises:
      BadInput: as `load_model`.
    """
    folder = find_model(folder)
    if is_published(folder):
        return read_config(folder)
    return _read_description(folder)[0]


def stage_of(folder: pathlib.Path) -> str | None:
    """Returns the stage that wrote a model folder; None for other folders.

    Raises:
      BadInput: the description cannot be read.
    """
    return _read_description(folder)[2] if (folder / MODEL).exists() else None


def is_published(folder: str | os.PathLike[str]) -> bool:
    """Returns whether this is a Hugging Face folder and not a model folder.

    Raises:
      BadInput: the folder does not exist.
    """
    folder = find_model(folder)
    if not folder.is_dir():
        raise BadInput(f"no model in {folder}: the folder does not exist; give the folder of a stage or a merge")
    return not (folder / MODEL).exists() and (folder / "config.json").exists()


def _model_and_step(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Returns the model folder that the path is or is part of, and the step that it names."""
    if path.is_dir() and not (path / MODEL).exists():
        path = absolute(path)
        if path.name == CHECKPOINTS:
            return path.parent, None
        if path.parent.name == CHECKPOINTS and path.name.isdigit():
            return path.parent.parent, int(path.name)
    return path, None


def _config_class(folder: pathlib.Path, name: str | None) -> type[Qwen3Config]:
    """Imports the class of the configuration, "module:Name"; a subclass of Qwen3Config is another model family."""
    if name is None:
        return Qwen3Config
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"{folder / MODEL}: the model is of the class {name}, which cannot be imported ({error}); put its package "
            "on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Qwen3Config)):
        raise BadInput(f"{folder / MODEL}: {name} is not a subclass of Qwen3Config; is the file damaged?")
    return found


def _read_description(folder: pathlib.Path) -> tuple[Qwen3Config, str, str, dict[str, str]]:
    """Returns configuration, kind, stage and prompts."""
    description = read_json(folder / MODEL)
    version = description.get("format")
    if version != FORMAT:
        raise BadInput(f"{folder / MODEL} is of format {version!r}, this version reads {FORMAT}; write it again")
    try:
        fields: dict[str, Any] = dict(description["model"])
        saved = fields.pop("kept", ())  # what older folders call `remat_policy`
        fields["remat_policy"] = tuple(fields.get("remat_policy", saved))
        fields.pop("unroll", None)  # older folders have it; it never changed a result
        config_class = _config_class(folder, description.get("config_class"))
        config, kind, stage = config_class(**fields), description["kind"], description["stage"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / MODEL} does not describe a model ({error}); write it again") from error
    if kind not in get_args(Kind):
        raise BadInput(f"{folder / MODEL}: kind {kind!r} is not one of {', '.join(get_args(Kind))}; set one of them")
    return config, kind, stage, checked_prompts(description.get("prompts"), str(folder / MODEL))
