"""The model that a recipe starts from instead of from scratch: its configuration, its vocabulary, its weights.

A folder here is a model folder (an import's, a stage's, a merge's) or a Hugging Face folder that could be imported.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from pplx_jax.checkpoints.model_folder import is_published, load_config
from pplx_jax.checkpoints.orbax import load_params
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import leaf_sharding

# The other fields may differ from those the weights came with: the mask, the precision, how gradients are made.
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
)

Folder = str | os.PathLike[str]


def model_to_train(model: Qwen3Config | None, initial: Folder | None) -> Qwen3Config:
    """The encoder of a recipe: as it binds it, else as found in `initial` and made bidirectional.

    Raises:
      BadInput: neither is given, `initial` is no model, or the two differ in a field of `ARCHITECTURE`.
    """
    if initial is None:
        if model is None:
            raise BadInput("nothing says what is trained; bind run.model, or run.initial to start from a model")
        return model
    found = load_config(initial)
    if model is None:
        return dataclasses.replace(found, causal=False)
    _check_architecture(model, found, initial)
    return model


def copy_vocabulary(initial: Folder, output: pathlib.Path) -> Vocabulary:
    """The vocabulary of `initial`, kept in the folder `output` too."""
    vocabulary = load_vocabulary(initial)
    output.mkdir(parents=True, exist_ok=True)
    vocabulary.save(output)
    return vocabulary


def load_weights(initial: Folder, config: Qwen3Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The float32 parameters of `initial`, to train `config` from.

    Those of a Hugging Face folder go to their places on the mesh a leaf at a time: the host never holds all of them.

    Raises:
      BadInput: as `model_to_train`, or weights are missing or damaged.
    """
    _check_architecture(config, load_config(initial), initial)
    if is_published(initial):
        from pplx_jax.checkpoints.huggingface.reader import read_model

        return read_model(initial, sharding=lambda path, shape: leaf_sharding(path, shape, mesh)).params
    return load_params(pathlib.Path(initial))


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
