"""Initial parameters, and the names of parameters."""

import jax
import numpy as np
import pytest
from flax import nnx

from pplx_jax.models.parameters import bind, initial_params, initial_rngs, is_embedding_table
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


def test_no_key_of_initial_weights_is_the_key_of_a_step():
    steps = np.arange(-1000, 1000, dtype=np.int32)  # negative after a failed step
    for seed in (0, 7):
        root, rngs = jax.random.key(seed), initial_rngs(seed)
        of_steps = jax.vmap(lambda step, root=root: jax.random.key_data(jax.random.fold_in(root, step)))(steps)
        of_weights = [jax.random.key_data(rngs.params()) for _ in range(100)]
        taken = {tuple(key) for key in np.asarray(of_steps)}
        assert len(taken) == len(steps) and not taken & {tuple(np.asarray(key)) for key in of_weights}
    # Control: a stream straight from the seed shares its keys with the first steps.
    assert tuple(np.asarray(jax.random.key_data(nnx.Rngs(7).params()))) in taken
