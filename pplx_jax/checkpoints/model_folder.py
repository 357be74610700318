"""A model on disk: `model.json`, its vocabulary and `checkpoints/`, the same for stages, merges and imports."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pplx_jax.checkpoints.huggingface.name_map import check_params
from pplx_jax.checkpoints.orbax import CHECKPOINTS, MODEL, load_params, save_params
from pplx_jax.core import parameter_trees as parameters
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config

FORMAT = 1
Kind = Literal["v1", "context_v1"]


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds.

    Attributes:
      config: the encoder.
      vocabulary: its tokenizer.
      params: nested dict of NumPy arrays.
      kind: "v1", or "context_v1" where chunks were trained to know their document.
      stage: which stage wrote it.
    """

    config: Qwen3Config
    vocabulary: Vocabulary
    params: dict[str, Any]
    kind: str
    stage: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the parameters, the vocabulary and all of the configuration that embeddings come from: what
        an index remembers of its model."""
        facts = [self.vocabulary.fingerprint, self.config.computing, parameters.digest(self.params)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def describe_model(
    folder: pathlib.Path,
    config: Qwen3Config,
    vocabulary: Vocabulary,
    *,
    stage: str,
    kind: str | None = None,
    merged_from: Sequence[str] = (),
) -> None:
    """Writes a model folder except its checkpoints.

    Args:
      folder: of the model.
      config: the encoder.
      vocabulary: its tokenizer.
      stage: which wrote it.
      kind: of the model; "v1" if None.
      merged_from: the stages that were merged, if it is a merge.
    """
    vocabulary.save(folder)
    description: dict[str, Any] = {
        "format": FORMAT,
        "stage": stage,
        "kind": kind or "v1",
        "model": dataclasses.asdict(config),
    }
    if merged_from:
        description["merged_from"] = list(merged_from)
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
) -> None:
    """Writes a whole model folder (merged and imported models); arguments as of `describe_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_params(folder, step, params)
    describe_model(folder, config, vocabulary, stage=stage, kind=kind, merged_from=merged_from)


def load_model(folder: str | pathlib.Path) -> ModelFolder:
    """Reads a model folder, one of its checkpoints (FOLDER/checkpoints/STEP; FOLDER/checkpoints is the latest), or a
    Hugging Face folder of a model that `import-hf` would import.

    Raises:
      BadInput: something is missing or damaged, weights are not finite or not of the configuration's shapes, or the
        vocabulary is larger than the embedding table; the message names the folder.
    """
    folder, step = _model_and_step(pathlib.Path(folder))
    if is_published(folder):
        from pplx_jax.checkpoints.huggingface.reader import read_model  # it builds on this module

        return read_model(folder)
    config, kind, stage = _read_description(folder)
    vocabulary, params = load_vocabulary(folder), load_params(folder, step)
    check_params(params, config, f"parameters of {folder}")
    parameters.require_finite(params, folder)
    if vocabulary.size > config.vocab_size:
        raise BadInput(
            f"{folder}: the vocabulary has {vocabulary.size} pieces, the embedding table only {config.vocab_size} "
            "rows; are the two of one model?"
        )
    return ModelFolder(config, vocabulary, params, kind, stage)


def load_config(folder: str | os.PathLike[str]) -> Qwen3Config:
    """The encoder of such a folder, its weights unread.

    Raises:
      BadInput: as `load_model`.
    """
    folder = pathlib.Path(folder)
    if is_published(folder):
        from pplx_jax.checkpoints.huggingface.reader import read_config

        return read_config(folder)
    return _read_description(folder)[0]


def stage_of(folder: pathlib.Path) -> str | None:
    """Which stage wrote a model folder; None of any other folder.

    Raises:
      BadInput: its description cannot be read.
    """
    return _read_description(folder)[2] if (folder / MODEL).exists() else None


def is_published(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a Hugging Face folder rather than a model folder.

    Raises:
      BadInput: it is no folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise BadInput(f"no model in {folder}: the folder does not exist; give the folder of a stage or a merge")
    return not (folder / MODEL).exists() and (folder / "config.json").exists()


def _model_and_step(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The model folder that a path is or lies in, and the step that it names."""
    if path.is_dir() and not (path / MODEL).exists():
        match path.absolute().parts:
            case *folder, last if last == CHECKPOINTS:
                return pathlib.Path(*folder), None
            case *folder, above, step if above == CHECKPOINTS and step.isdigit():
                return pathlib.Path(*folder), int(step)
    return path, None


def _read_description(folder: pathlib.Path) -> tuple[Qwen3Config, str, str]:
    """Configuration, kind and stage."""
    description = read_json(folder / MODEL)
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise BadInput(f"{folder / MODEL} is of format {version!r}, this version reads {FORMAT}; write it again")
    try:
        fields: dict[str, Any] = dict(description["model"])
        saved = fields.pop("kept", ())  # what older folders call `remat_policy`
        fields["remat_policy"] = tuple(fields.get("remat_policy", saved))
        fields.pop("unroll", None)  # older folders have it; it never changed a result
        config, kind, stage = Qwen3Config(**fields), description["kind"], description["stage"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / MODEL} does not describe a model ({error}); is it of another version?") from error
    if kind not in get_args(Kind):
        raise BadInput(f"{folder / MODEL}: kind {kind!r} is not one of {', '.join(get_args(Kind))}; set one of them")
    return config, kind, stage
