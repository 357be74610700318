"""Accepted values of config.json, and refused ones, all of them in a one-line message."""

import json

import pytest
import transformers

from pplx_jax.checkpoints.huggingface.config import read_source
from pplx_jax.core.errors import BadInput

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 350,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "rope_scaling": None,
}


def read(folder, **changes):
    (folder / "config.json").write_text(json.dumps(QWEN3 | changes))
    return read_source(folder)


def refusal(folder, **changes) -> str:
    with pytest.raises(BadInput) as caught:
        read(folder, **changes)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)
    return str(caught.value)


def test_a_causal_model(tmp_path):
    source = read(tmp_path)
    config = source.config
    assert config.causal and source.tied and source.kind == "v1"
    assert (config.vocab_size, config.width, config.mlp_width, config.layers) == (350, 48, 80, 3)
    assert (config.query_heads, config.kv_heads, config.head_dim, config.max_length) == (6, 2, 16, 4096)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 1e6)


@pytest.mark.parametrize(
    "changes, causal",
    [
        ({"model_type": "bidirectional_pplx_qwen3"}, False),
        ({"is_causal": False}, False),
        ({"is_causal": False, "use_bidirectional_attention": True}, False),
        ({"is_causal": True}, True),
        ({"use_bidirectional_attention": False}, True),
    ],
)
def test_the_mask_is_that_of_transformers(tmp_path, changes, causal):
    assert read(tmp_path, **changes).config.causal is causal


def test_a_contextual_model(tmp_path):
    assert read(tmp_path, architectures=["PPLXQwen3ContextualModel"]).kind == "context_v1"


def test_the_rope_base_of_either_generation_of_transformers(tmp_path):
    parameters = {"rope_type": "default", "rope_theta": 5e4}
    assert read(tmp_path, rope_theta=None, rope_parameters=parameters).config.rope_theta == 5e4
    assert read(tmp_path, rope_scaling={"rope_type": "default"}).config.rope_theta == 1e6


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is true without is_causal false"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias is True"),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling is {'rope_type'",
        ),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"model_type": "llama", "head_dim": None, "hidden_size": 50}, "head_dim is None, not a size"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is ['sliding_attention']"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is {'rope_type': 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters is {'rope_type': 'linear'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_theta is 1000000 and in rope_param"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is"),
        ({"head_dim": None}, "head_dim is None, not a size"),
        ({"vocab_size": True}, "vocab_size is True, not a size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not a size"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None, not a positive number"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6', not a positive number"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, changes, words):
    assert words in refusal(tmp_path, **changes)


@pytest.mark.parametrize("model_type, bias", [("llama", False), ("qwen2", True)])
def test_other_families_and_what_they_leave_out(tmp_path, model_type, bias):
    read(tmp_path, model_type=model_type)
    keys = ("head_dim", "rms_norm_eps", "rope_theta")
    content = {key: value for key, value in QWEN3.items() if key not in keys} | {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_source(tmp_path).config
    assert (config.qk_norm, config.qkv_bias, config.causal) == (False, bias, True)
    of_transformers = transformers.AutoConfig.for_model(**content)
    assert config.head_dim == content["hidden_size"] // content["num_attention_heads"]
    assert config.rms_norm_eps == of_transformers.rms_norm_eps
    assert config.rope_theta == of_transformers.rope_parameters["rope_theta"] == 10_000.0
    assert not read(tmp_path, model_type=f"bidirectional_pplx_{model_type}").config.causal


def test_a_llama_without_groups_has_as_many_key_heads_as_query_heads(tmp_path):
    assert read(tmp_path, model_type="llama", num_key_value_heads=None).config.kv_heads == 6
    assert "num_key_value_heads is None" in refusal(tmp_path, num_key_value_heads=None)


def test_everything_at_once(tmp_path):
    line = refusal(tmp_path, attention_bias=True, hidden_size=-1, rope_theta=0, hidden_act="relu")
    for words in ("attention_bias is True", "hidden_size is -1", "rope_theta is 0", "hidden_act is 'relu'"):
        assert words in line


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json"):
        read_source(tmp_path)
