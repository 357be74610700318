"""The parameters of a stage at its first step."""

import pathlib
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.initial_model import load_weights
from pplx_jax.checkpoints.merge import slerp
from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.parameter_trees import named_shapes
from pplx_jax.core.resume_check import require_same_shapes
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config


def starting_params(
    model: Qwen3Config,
    config: Qwen3Config,
    wanted: Any,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    start_from: pathlib.Path | None,
    initial: pathlib.Path | None,
    initial_share: float = 0.0,
) -> tuple[dict[str, Any], str]:
    """Returns the parameters of a stage without a checkpoint, and text that says where they come from.

    Args:
      model: the encoder of the recipe.
      config: the encoder that the stage trains, which may have no head.
      wanted: tree of the expected shapes.
      mesh: devices for the parameters.
      seed: of random parameters.
      start_from: folder of an earlier stage; has priority over `initial`.
      initial: imported weights.
      initial_share: as in `Training`; both sets of parameters are read on the host.

    Raises:
      BadInput: the earlier stage is of another model, or as in `load_weights`.
    """
    if start_from:
        params = _without_head(load_params(start_from), config)
        require_same_shapes(start_from, named_shapes(params), named_shapes(wanted))
        if not initial_share:
            return params, f"the stage in {start_from}"
        first = load_model(initial).params if initial else jax.tree.map(np.asarray, initial_params(config, seed))
        mixed = slerp(params, _without_head(first, config), weight=initial_share)
        return mixed, f"the stage in {start_from}, merged with {initial or 'its random weights'}"
    if initial:
        return _without_head(load_weights(initial, model, mesh), config), f"the weights in {initial}"
    return initial_params(config, seed, mesh), "random numbers"


def _without_head(params: dict[str, Any], config: Qwen3Config) -> dict[str, Any]:
    """Returns the parameters of `config`: drops the separate head of an earlier stage if `config` has none."""
    return {name: leaf for name, leaf in params.items() if name != "head" or not config.tied}
