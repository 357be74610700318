"""Parameters of the transformer as a nested dict of arrays: drawn at random, and bound to a model."""

from typing import Any

import jax
from flax import nnx

from pplx_jax.models.transformer import Qwen3, Qwen3Config
from pplx_jax.parallel.mesh import shardings


def initial_params(config: Qwen3Config, seed: int, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """Random parameters as a nested dict, the same on any mesh; each made where it lies, where one is given."""

    def initialize():
        return nnx.to_pure_dict(nnx.state(Qwen3(config, rngs=nnx.Rngs(seed))))

    layout = None if mesh is None else shardings(jax.eval_shape(initialize), mesh)
    return jax.jit(initialize, out_shardings=layout)()


def bind(config: Qwen3Config, params: dict[str, Any]) -> Qwen3:
    """The model with these parameters."""
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
