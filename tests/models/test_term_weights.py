"""Smooth inverse frequency in the weights of a model from scratch: what it weighs, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.models.term_weights import TermWeights, weighted
from pplx_jax.objectives.similarity import normalize

TEXTS = [[5, 6, 7, 7], [8], [300, 5, 9, 9, 9, 9, 17]]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def config(vocabulary):
    return tiny.tiny_config(vocabulary, embedding_init_std=0.3, residual_init_scale=0.0)


@pytest.fixture(scope="module")
def params(config):
    return jax.device_get(initial_params(config, 0))


@pytest.fixture(scope="module")
def weights(config):
    counts = np.arange(config.vocab_size) ** 2
    counts[300] = 0
    return TermWeights(smoothing=1e-3, power=0.7).of(counts)


def unit_vectors(params) -> np.ndarray:
    """Of the table without its last coordinate, times sqrt(D)."""
    table = params["embed"]["embedding"][:, :-1]
    return table / np.linalg.norm(table, axis=1, keepdims=True) * np.sqrt(tiny.WIDTH)


def test_weights_are_smooth_inverse_frequencies():
    np.testing.assert_allclose(TermWeights(0.1, 1.0).of(np.array([0, 10, 90])), [1.0, 0.5, 0.1])
    np.testing.assert_allclose(TermWeights(0.1, 0.5).of(np.array([0, 10, 90])), np.sqrt([1.0, 0.5, 0.1]))
    assert (TermWeights(0.1, 0.0).of(np.array([3, 4])) == 1.0).all()
    assert (TermWeights().of(np.zeros(3)) == 1.0).all()


def test_the_state_of_a_token_is_as_long_as_its_weight(config, params, weights):
    tokens = jnp.arange(config.vocab_size)[None]
    model = bind(config, weighted(params, weights))
    states = np.asarray(model(tokens, jnp.ones_like(tokens), tokens)[0])
    np.testing.assert_allclose(states[:, :-1], weights[:, None] * unit_vectors(params), rtol=1e-4, atol=1e-5)
    assert (states[:, -1] == 0.0).all()


def test_a_text_is_the_weighted_mean_of_its_tokens(config, params, weights, vocabulary):
    def pooled(params):
        return Embedder(LoadedModel(config, vocabulary, params, "v1", "initial")).encode_tokens(TEXTS)[:, :-1]

    vectors = unit_vectors(params)
    expected = np.stack([(weights[ids, None] * vectors[ids]).mean(axis=0) for ids in TEXTS])
    np.testing.assert_allclose(pooled(weighted(params, weights)), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(pooled(params) - expected).max() > 0.1


def test_the_last_coordinate_stays_shut_under_a_loss_of_cosines(config, params, weights):
    tokens = jnp.array([[5, 9, 30], [200, 300, 7]])

    @jax.jit
    @jax.grad
    def gradient(params):
        hidden = bind(config, params)(tokens, jnp.ones_like(tokens), jnp.arange(3)[None].repeat(2, 0))
        query, document = normalize(tanh_int8(hidden.mean(axis=1)))
        return -query @ document

    start = gradient(weighted(params, weights))
    assert start["final_norm"]["scale"][-1] == 0.0 != gradient(params)["final_norm"]["scale"][-1]
    # All else is learnt, and so is what makes the frequent short.
    assert np.abs(start["final_norm"]["scale"][:-1]).min() > 0.0
    assert np.abs(start["embed"]["embedding"][5, -1]) > 0.0


def test_the_argument_is_left_as_it_was(params, weights):
    before = jax.tree.map(np.copy, params)
    weighted(params, weights)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("fields", [{"smoothing": 0.0}, {"power": -1.0}])
def test_what_cannot_weigh_is_refused(fields):
    with pytest.raises(BadInput, match=next(iter(fields))):
        TermWeights(**fields)
