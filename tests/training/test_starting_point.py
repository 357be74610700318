"""The parameters of a first step: an earlier stage, another one than the stage names, or a merge with the base."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.merge import slerp
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.recipes.recipe import _names
from pplx_jax.training.stages.autoregressive import AutoregressiveStage
from pplx_jax.training.starting_point import starting_params


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model without a head, the folders of a base and of a stage after it, and their parameters."""
    folder = tmp_path_factory.mktemp("models")
    vocabulary = tiny.tiny_vocabulary(folder)
    config = tiny.tiny_config(vocabulary)
    params = [jax.tree.map(np.asarray, initial_params(config, seed)) for seed in (1, 2)]
    causal = dataclasses.replace(config, causal=True)
    for name, of_config, each in zip(("base", "diffusion"), (causal, config), params, strict=True):
        save_model(folder / name, of_config, vocabulary, each, stage=name)
    return config, folder / "base", folder / "diffusion", params


def start(config, **options):
    wanted = jax.eval_shape(lambda: initial_params(config, 0))
    return starting_params(config, config, wanted, Mesh().build(), seed=0, **options)


def largest_difference(one, two) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one, two)))


def test_a_share_of_the_base_is_the_slerp_of_both(made):
    config, base, earlier, params = made
    found, source = start(config, start_from=earlier, initial=base, initial_share=0.25)
    expected = slerp(params[1], params[0], weight=0.25)
    assert largest_difference(found, expected) == 0.0
    assert str(earlier) in source and str(base) in source
    for share, exact in ((0.0, params[1]), (1.0, params[0])):
        unmixed, _ = start(config, start_from=earlier, initial=base, initial_share=share)
        assert largest_difference(unmixed, exact) == 0.0
    assert min(largest_difference(found, each) for each in params) > 1e-3  # control


def test_without_imported_weights_the_share_is_of_the_random_ones(made):
    config, _, earlier, params = made
    found, _ = start(config, start_from=earlier, initial=None, initial_share=0.5)
    expected = slerp(params[1], jax.tree.map(np.asarray, initial_params(config, 0)), weight=0.5)
    assert largest_difference(found, expected) == 0.0


def test_a_recipe_names_another_stage_to_start_from():
    autoregressive = tiny.training("diffusion", stage=AutoregressiveStage(8))
    assert tiny.training("pair").earlier_stage == "diffusion"
    after = tiny.training("pair", starts_from="autoregressive")
    assert after.earlier_stage == "autoregressive"
    assert _names([autoregressive, after]) == ["autoregressive", "pair"]
    with pytest.raises(BadInput, match="list autoregressive before it"):
        _names([after, autoregressive])
    with pytest.raises(BadInput, match="pair starts from autoregressive, which the recipe does not have"):
        _names([after])
    with pytest.raises(BadInput, match="does not have"):
        _names([tiny.training("pair", initial_share=0.5)])
    assert _names([tiny.training("pair")]) == ["pair"]  # from the initial weights


def test_a_share_is_from_zero_to_one():
    with pytest.raises(BadInput, match="initial_share"):
        tiny.training("pair", initial_share=1.5)
