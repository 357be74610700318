"""Where a stage's parameters come from at its first step."""

import pathlib
from typing import Any

import jax

from pplx_jax.checkpoints.initial_model import load_weights
from pplx_jax.checkpoints.orbax import load_params
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
) -> tuple[dict[str, Any], str]:
    """Parameters of a stage that has no checkpoint of its own, and words for where they come from.

    Args:
      model: the encoder as the recipe has it.
      config: as the stage trains it, which may leave its head behind.
      wanted: tree of the shapes of the parameters.
      mesh: where they are to lie.
      seed: of random ones.
      start_from: folder of an earlier stage; wins over `initial`.
      initial: imported weights.

    Raises:
      BadInput: the earlier stage is of another model, or as `load_weights`.
    """
    if start_from:
        params = _without_head(load_params(start_from), config)
        require_same_shapes(start_from, named_shapes(params), named_shapes(wanted))
        return params, f"the stage in {start_from}"
    if initial:
        return _without_head(load_weights(initial, model, mesh), config), f"the weights in {initial}"
    return initial_params(config, seed, mesh), "random numbers"


def _without_head(params: dict[str, Any], config: Qwen3Config) -> dict[str, Any]:
    """The parameters of `config`, where an earlier stage may have had a head of its own beside them."""
    return {name: leaf for name, leaf in params.items() if name != "head" or not config.tied}
