"""Parameters of the transformer as a nested dict of arrays: initial values, binding to a model, and names."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from pplx_jax.core.parameter_trees import dotted
from pplx_jax.models.lookup import EMBEDDING_TABLE
from pplx_jax.models.transformer import Qwen3, Qwen3Config
from pplx_jax.parallel.mesh import shardings

# Training draws the key of step n as fold_in(key(seed), n). This number is not a step.
_INITIALIZATION = np.uint32(1 << 31)


def initial_rngs(seed: int) -> nnx.Rngs:
    """Returns the random stream of initial weights, which shares no key with the steps of a training of this seed."""
    return nnx.Rngs(jax.random.fold_in(jax.random.key(seed), _INITIALIZATION))


def initial_params(config: Qwen3Config, seed: int, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """Returns random parameters, the same on any mesh. On a mesh each device makes its own part."""

    def initialize():
        return nnx.to_pure_dict(nnx.state(config.build(initial_rngs(seed))))

    layout = None if mesh is None else shardings(jax.eval_shape(initialize), mesh)
    return jax.jit(initialize, out_shardings=layout)()


@functools.lru_cache(maxsize=8)
def abstract_model(config: Qwen3Config) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the graph of the model, and its state with shapes instead of arrays. Do not change the state."""
    return nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))


def bind(config: Qwen3Config, params: dict[str, Any]) -> Qwen3:
    """Returns the model with these parameters."""
    graph, shapes = abstract_model(config)
    state = jax.tree.map(lambda shape: shape, shapes)  # a copy, which the next line fills
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def is_embedding_table(path: tuple[Any, ...]) -> bool:
    """Returns whether a path, as `jax.tree_util.tree_map_with_path` gives it, is that of the input embedding table.

    An untied head (`head.embedding`) is not an input embedding table.
    """
    return dotted(path) == EMBEDDING_TABLE
