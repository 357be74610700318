import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pplx_jax.checkpoints.huggingface.name_map import to_torch_layout
from pplx_jax.models.parameters import bind

LENGTHS = (1, 2, 7, 33, 128, 600)


def reference(tensors, config, ids):
    """Hidden states [L, D] of one unpadded text: Qwen3's mathematics written out in float64."""
    weights = {key: torch.tensor(np.ascontiguousarray(tensor), dtype=torch.float64) for key, tensor in tensors.items()}

    def norm(x, key):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps) * weights[key]

    half = config.head_dim // 2
    angles = torch.arange(len(ids)).double()[:, None] * config.rope_theta ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotate(x):
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    x = weights["embed_tokens.weight"][ids]
    for layer in range(config.layers):
        prefix = f"layers.{layer}"

        def project(x, name, prefix=prefix):
            return x @ weights[f"{prefix}.{name}.weight"].T

        y = norm(x, f"{prefix}.input_layernorm.weight")
        query, key, value = (
            project(y, f"self_attn.{name}_proj").unflatten(-1, (-1, config.head_dim)) for name in "qkv"
        )
        query = rotate(norm(query, f"{prefix}.self_attn.q_norm.weight"))
        key = rotate(norm(key, f"{prefix}.self_attn.k_norm.weight"))
        group = config.query_heads // config.kv_heads
        heads = []
        for head in range(config.query_heads):
            scores = query[:, head] @ key[:, head // group].T / config.head_dim**0.5
            heads.append(scores.softmax(-1) @ value[:, head // group])
        x = x + project(torch.cat(heads, -1), "self_attn.o_proj")
        y = norm(x, f"{prefix}.post_attention_layernorm.weight")
        gated = torch.nn.functional.silu(project(y, "mlp.gate_proj")) * project(y, "mlp.up_proj")
        x = x + project(gated, "mlp.down_proj")
    return norm(x, "norm.weight").numpy()


@pytest.fixture(scope="module")
def texts(config):
    generator = np.random.default_rng(1)
    return [generator.integers(4, config.vocab_size, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(model, texts):
    tensors = to_torch_layout(model.params, model.config)
    return [reference(tensors, model.config, ids) for ids in texts]


@pytest.fixture(scope="module")
def batch(texts, config):
    tokens = np.zeros((len(texts), max(LENGTHS)), np.int64)
    for row, ids in zip(tokens, texts, strict=True):
        row[: len(ids)] = ids
    return tokens, (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)


def load(folder, **arguments):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, trust_remote_code=True, **arguments).eval()


def hidden(torch_model, tokens, mask):
    with torch.inference_mode():
        return torch_model(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.float().numpy()


def assert_close(found, expected):
    for row, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(row[: len(right)], right, atol=1e-4, rtol=0)


def test_our_model_is_the_reference(model, batch, expected):
    tokens, mask = batch
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    arrays = (jnp.asarray(array, jnp.int32) for array in (tokens, mask, positions))
    assert_close(np.asarray(bind(model.config, model.params)(*arrays)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_export_is_the_reference(exports, batch, expected, attention):
    assert_close(hidden(load(exports["v1"][0], attn_implementation=attention), *batch), expected)


def test_padding_on_the_left_changes_nothing(exports, batch, expected):
    tokens, mask = (np.flip(array, 1) for array in batch)
    lengths = mask.sum(1)
    tokens = np.stack([np.roll(row[::-1], tokens.shape[1] - n) for row, n in zip(tokens, lengths, strict=True)])
    found = hidden(load(exports["v1"][0]), tokens, mask.copy())
    assert_close([row[-n:] for row, n in zip(found, lengths, strict=True)], expected)


def test_a_late_token_moves_the_first_state(exports, texts):
    torch_model = load(exports["v1"][0])
    ids = texts[3][None].copy()
    before = hidden(torch_model, ids, np.ones_like(ids))
    ids[0, -1] = 5 if ids[0, -1] != 5 else 6
    assert np.abs(hidden(torch_model, ids, np.ones_like(ids)) - before)[0, 0].max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_is_finite_even_for_an_empty_text(exports, batch, expected, dtype, attention):
    tokens, mask = batch
    mask = mask.copy()
    mask[0] = 0
    found = hidden(load(exports["v1"][0], dtype=dtype, attn_implementation=attention), tokens, mask)
    assert np.isfinite(found).all()
    for row, right in zip(found[1:], expected[1:], strict=True):
        cosine = (row[: len(right)] * right).sum(-1) / np.linalg.norm(row[: len(right)], axis=-1)
        assert (cosine / np.linalg.norm(right, axis=-1)).min() > 0.99


def test_the_empty_row_bias_cannot_overflow_to_nan(exports):
    from importlib import import_module

    module = import_module(type(load(exports["v1"][0])).__module__)
    bias = module.attention_bias(torch.tensor([[0, 0], [1, 0]]), torch.float16)
    assert bias.shape == (2, 1, 1, 2)
    assert bias[0].tolist() == [[[0.0, 0.0]]] and bias[1, 0, 0, 0] == 0
    scores = torch.tensor([-60.0, -60.0], dtype=torch.float16)
    assert torch.isfinite(torch.softmax(scores + bias[:, 0, 0], -1)).all()


def test_bad_calls_raise(exports, config):
    torch_model = load(exports["v1"][0])
    ids = torch.ones((1, 3), dtype=torch.long)
    with pytest.raises(ValueError, match="exactly one"):
        torch_model()
    with pytest.raises(ValueError, match="exactly one"):
        torch_model(ids, inputs_embeds=torch.zeros(1, 3, config.width))
    with pytest.raises(ValueError, match=r"give \[batch, length\]"):
        torch_model(ids, torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match="1025 tokens; the model takes 1024"):
        torch_model(torch.ones((1, 1025), dtype=torch.long))


def test_all_states_and_tuples(exports, texts):
    torch_model = load(exports["v1"][0])
    ids = torch.tensor(texts[2])[None]
    output = torch_model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == torch_model.config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(torch_model(ids, return_dict=False)[0], output.last_hidden_state)


def test_gradients_flow_with_checkpointing(exports, texts):
    torch_model = load(exports["v1"][0]).train()
    torch_model.gradient_checkpointing_enable()
    torch_model(torch.tensor(texts[2])[None]).last_hidden_state.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in torch_model.parameters())


def test_config_for_servers(exports, model):
    found = json.loads((exports["v1"][0] / "config.json").read_text())
    assert found["model_type"] == "bidirectional_pplx_qwen3"
    assert found["use_bidirectional_attention"] is True
    assert found["architectures"] == ["PPLXQwen3Model"]
    # The keys text-embeddings-inference requires of a Qwen3.
    required = {
        "attention_bias",
        "hidden_act",
        "rope_theta",
        "use_sliding_window",
        "eos_token_id",
        "head_dim",
    }
    assert required <= found.keys()
    assert found["rope_theta"] == model.config.rope_theta
    slowest = load(exports["v1"][0]).rotary_emb.inv_freq[-1].item()
    assert slowest == pytest.approx(model.config.rope_theta ** (2 / model.config.head_dim - 1), rel=1e-6)
