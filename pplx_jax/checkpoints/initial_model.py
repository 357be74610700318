"""The model that a recipe starts from: its configuration, vocabulary and weights.

A folder is a model folder (of an import, a stage or a merge), a Hugging Face folder that `import-hf` accepts, or the
name of a model of the Hugging Face hub (`checkpoints.hub_folder`).
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.checkpoints.huggingface.reader import read_model
from pplx_jax.checkpoints.model_folder import is_published, load_config
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.kernels.platform import fast_dtype
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import leaf_sharding

# Other fields, such as the mask and the precision, may differ from those of the weights.
ARCHITECTURE = (
    "vocab_size",
    "width",
    "mlp_width",
    "layers",
    "query_heads",
    "kv_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "tied",
    "qk_norm",
    "qkv_bias",
)

Folder = str | os.PathLike[str]


def model_to_train(model: Qwen3Config | None, initial: Folder | None, platform: str | None = None) -> Qwen3Config:
    """Returns the encoder to train: `model` if the recipe binds it, else that of `initial`, made bidirectional.

    Args:
      model: of the recipe.
      initial: the folder of the initial model.
      platform: decides the precision of a model with dtype "auto"; that of this process if None.

    Raises:
      BadInput: neither is given, `initial` is not a model, or the two differ in a field of `ARCHITECTURE`.
    """
    if initial is None:
        if model is None:
            raise BadInput("the recipe has no model; bind run.model, or run.initial to start from a model")
        return _in_fast_dtype(model, platform)
    found = load_config(initial)
    if model is None:
        return dataclasses.replace(found, causal=False)
    _check_architecture(model, found, initial)
    return _in_fast_dtype(model, platform)


def _in_fast_dtype(model: Qwen3Config, platform: str | None) -> Qwen3Config:
    if model.dtype != "auto":
        return model
    return dataclasses.replace(model, dtype=fast_dtype(platform or jax.default_backend()))


def copy_vocabulary(initial: Folder, output: pathlib.Path) -> Vocabulary:
    """Copies the vocabulary of `initial` to the folder `output` and returns it."""
    vocabulary = load_vocabulary(find_model(initial))
    output.mkdir(parents=True, exist_ok=True)
    vocabulary.save(output)
    return vocabulary


def load_weights(initial: Folder, config: Qwen3Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Reads the float32 parameters of `initial` as the starting point for `config`.

    Parameters of a Hugging Face folder are moved to the mesh one by one, so the host never holds all of them.

    Raises:
      BadInput: as `model_to_train`, or weights are missing or damaged.
    """
    initial = find_model(initial)
    _check_architecture(config, load_config(initial), initial)
    if is_published(initial):
        return read_model(initial, sharding=lambda path, shape: leaf_sharding(path, shape, mesh)).params
    return load_params(initial)


def _check_architecture(config: Qwen3Config, found: Qwen3Config, initial: Folder) -> None:
    differing = [
        f"{name} is {getattr(config, name)}, not {getattr(found, name)}"
        for name in ARCHITECTURE
        if getattr(config, name) != getattr(found, name)
    ]
    if differing:
        raise BadInput(
            f"the recipe's model does not fit the weights in {initial}: {'; '.join(differing)}; "
            "bind run.model = None to take the configuration from there"
        )
