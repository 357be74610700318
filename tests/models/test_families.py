"""Llama and Qwen2.5 against transformers with the same weights, and what a family must not change for Qwen3."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from pplx_jax.checkpoints.huggingface.name_map import from_torch_layout
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.rules import parameter_axes
from pplx_jax.training.optimizers import _is_matrix

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 97, "width": 48, "mlp_width": 80, "layers": 3, "query_heads": 4, "kv_heads": 2, "head_dim": 20}
FAMILIES = {
    "Qwen3": {},
    "Llama": {"qk_norm": False},
    "Qwen2": {"qk_norm": False, "qkv_bias": True},
}
LENGTHS = (300, 1, 2, 17)  # packed into one sequence of 384
TOLERANCE = 2e-5


def torch_model(family: str) -> torch.nn.Module:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attn_implementation="eager",
        use_cache=False,
    )
    model = getattr(transformers, f"{family}Model")(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(noise / (value.shape[-1] ** 0.5 if name.endswith("proj.weight") else 1))
    return model


def torch_hidden(model, tokens, causal):
    length = len(tokens)
    mask = torch.zeros(1, 1, length, length)
    if causal:
        mask.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), torch.finfo(torch.float32).min)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens[None]), attention_mask=mask).last_hidden_state[0].numpy()


def packed():
    tokens = np.random.default_rng(0).integers(0, 97, (1, 384))
    segment_ids, positions = np.zeros((2, 1, 384), np.int32)
    start = 0
    for name, length in enumerate(LENGTHS, 1):
        segment_ids[0, start : start + length] = name
        positions[0, start : start + length] = np.arange(length)
        start += length
    return tokens, segment_ids, positions


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_packed_texts_equal_transformers_alone(family):
    theirs = torch_model(family)
    tensors = {key: value.detach().numpy() for key, value in theirs.named_parameters()}
    batch = packed()

    def ours(causal, tensors=tensors, **fields):
        config = Qwen3Config(**SIZES, **(FAMILIES[family] | fields), causal=causal, dtype="float32")
        params = jax.tree.map(jnp.asarray, from_torch_layout(tensors, config))
        assert config.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
        return np.asarray(jax.jit(bind(config, params))(*map(jnp.asarray, batch)))[0]

    for causal in (True, False):
        hidden, start = ours(causal), 0
        for length in LENGTHS:
            part = slice(start, start + length)
            np.testing.assert_allclose(
                hidden[part], torch_hidden(theirs, batch[0][0, part], causal), rtol=0, atol=TOLERANCE
            )
            start += length
    norms = {f"layers.{layer}.self_attn.{name}_norm.weight": np.ones(20) for layer in range(3) for name in "qk"}
    controls = [ours(False, tensors | norms, qk_norm=True)]
    if family == "Qwen2":
        without = {key: tensor for key, tensor in tensors.items() if not key.endswith("bias")}
        controls.append(ours(False, without, qkv_bias=False))
    for control in controls:
        assert np.abs(control[:300] - hidden[:300]).max() > 20 * TOLERANCE


def test_biases_train_in_float32_are_sharded_like_their_kernels_and_do_not_decay():
    config = Qwen3Config(**SIZES | {"layers": 1}, **FAMILIES["Qwen2"], remat=False)
    params = initial_params(config, 0)
    attention = params["layers"]["attention"]
    assert "q_norm" not in attention and attention["q"]["bias"].shape == (1, 80)
    batch = tuple(jnp.asarray(array[:, :16]) for array in packed())
    gradient = jax.grad(lambda params: bind(config, params)(*batch)[..., 0].astype(jnp.float32).sum())(params)
    for name in "qkv":
        bias = gradient["layers"]["attention"][name]["bias"]
        assert bias.dtype == jnp.float32 and jnp.isfinite(bias).all() and jnp.abs(bias).max() > 0
    for name, axis in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")):
        assert parameter_axes(f"layers.attention.{name}.bias", 2) == ("layers", axis)
    decays = _is_matrix(params)["layers"]["attention"]["q"]
    assert decays == {"kernel": True, "bias": False}


def test_fingerprints_of_qwen3_models_stay():
    config = Qwen3Config(
        vocab_size=151936, width=1024, mlp_width=3072, layers=28, query_heads=16, kv_heads=8, head_dim=128
    )

    def digest(config):
        return hashlib.sha256(json.dumps(config.computing, sort_keys=True).encode()).hexdigest()[:16]

    assert digest(config) == "b8bcea08d18e73f1"  # of the version before the other families
    others = [dataclasses.replace(config, **fields) for fields in FAMILIES.values()]
    assert len({digest(other) for other in others}) == 3
