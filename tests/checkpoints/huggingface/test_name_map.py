import jax
import numpy as np
import pytest
from helpers.odd_model import odd_config, odd_params

from pplx_jax.checkpoints.huggingface.name_map import from_torch_layout, to_torch_layout
from pplx_jax.core.errors import BadInput
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config

PUBLISHED = Qwen3Config(
    vocab_size=151936, width=1024, mlp_width=3072, layers=28, query_heads=16, kv_heads=8, head_dim=128
)


@pytest.fixture(scope="module")
def config():
    return odd_config(75)


@pytest.fixture(scope="module")
def params(config):
    return odd_params(config)


def test_round_trip_bit_for_bit(params, config):
    tensors = to_torch_layout(params, config)
    back = from_torch_layout(tensors, config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_kernels_are_transposed_and_layers_numbered(params, config):
    tensors = to_torch_layout(params, config)
    query = params["layers"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(tensors["layers.2.self_attn.q_proj.weight"], query[2].T)
    assert tensors["layers.0.self_attn.o_proj.weight"].shape == (48, 64)


def test_nothing_is_copied(params, config):
    tensors = to_torch_layout(params, config)
    assert np.shares_memory(tensors["layers.1.mlp.gate_proj.weight"], params["layers"]["mlp"]["gate"]["kernel"])


def test_published_model_has_its_tensors_and_parameters():
    shapes = jax.eval_shape(lambda: initial_params(PUBLISHED, 0))
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    tensors = to_torch_layout(params, PUBLISHED)
    assert len(tensors) == 310
    assert sum(tensor.size for tensor in tensors.values()) == 596_049_920 == PUBLISHED.parameters
    assert tensors["layers.27.self_attn.q_proj.weight"].shape == (2048, 1024)
    assert not any(key.startswith("lm_head") for key in tensors)


def test_every_problem_of_our_side_in_one_line(params, config):
    broken = {**params, "head": {"kernel": np.zeros((2, 2))}, "final_norm": {"scale": np.zeros(7)}}
    del broken["embed"]
    with pytest.raises(BadInput) as error:
        to_torch_layout(broken, config)
    message = str(error.value)
    assert "\n" not in message
    assert "embed.embedding is missing" in message
    assert "head.kernel is left over" in message
    assert "final_norm.scale has shape (7,), not (48,)" in message


def test_every_problem_of_their_side_in_one_line(params, config):
    tensors = to_torch_layout(params, config)
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    tensors["layers.0.self_attn.q_proj.weight"] = tensors["layers.0.self_attn.q_proj.weight"].T
    del tensors["layers.1.mlp.up_proj.weight"]
    with pytest.raises(BadInput) as error:
        from_torch_layout(tensors, config)
    message = str(error.value)
    assert "lm_head.weight is left over" in message
    assert "layers.1.mlp.up_proj.weight is missing" in message
    assert "layers.0.self_attn.q_proj.weight has shape (48, 64), not (64, 48)" in message
