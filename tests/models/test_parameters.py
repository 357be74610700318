"""Initial parameters, and the names of parameters."""

import jax
import numpy as np
import pytest

from pplx_jax.models.parameters import bind, initial_params, is_embedding_table
from pplx_jax.models.transformer import Qwen3Config


def config(**fields) -> Qwen3Config:
    sizes = {"vocab_size": 32, "width": 8, "mlp_width": 8, "layers": 2, "query_heads": 2, "kv_heads": 1, "head_dim": 4}
    return Qwen3Config(**sizes, **fields)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_input_table_is_an_embedding_table(tied):
    params = initial_params(config(tied=tied), 0)
    mask = jax.tree_util.tree_map_with_path(lambda path, _: is_embedding_table(path), params)
    assert mask["embed"]["embedding"] is True and sum(jax.tree.leaves(mask)) == 1
    assert tied == ("head" not in params)
    assert tied or mask["head"]["embedding"] is False


def test_binding_copies_nothing_between_models():
    first, second = (initial_params(config(), seed) for seed in (0, 1))
    models = [bind(config(), params) for params in (first, second)]
    for model, params in zip(models, (first, second), strict=True):
        np.testing.assert_array_equal(model.embed.embedding[...], params["embed"]["embedding"])
