"""Exports of Llama and Qwen2.5: they open as exports of Qwen3 do, and compute what transformers computes."""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from helpers.exported import load

from pplx_jax.core.errors import BadInput
from pplx_jax.export.export_parity import check_parity
from pplx_jax.inference.sentence_transformer import is_foreign

pytestmark = pytest.mark.long

TITLES = {"llama": "Llama", "qwen2": "Qwen2"}
LENGTHS = (1, 7, 33, 600)


@pytest.fixture(scope="module", params=TITLES)
def family(request, family_exports):
    """(transformers' name, folder, report, model)."""
    return TITLES[request.param], *family_exports[request.param]


@pytest.fixture(scope="module")
def batch(vocabulary):
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(4, vocabulary.size, mask.shape)
    return np.where(mask, tokens, 0), mask.astype(np.int64)


def own_class(title, folder, tokens, mask, *, causal=False):
    """Hidden states of transformers' own class with the whole mask written out."""
    model = getattr(transformers, f"{title}Model").from_pretrained(folder).eval()
    assert type(model).__name__ == f"{title}Model"
    length = tokens.shape[1]
    seen = torch.tensor(mask).bool()[:, None, None, :].expand(-1, 1, length, -1)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return model(input_ids=torch.tensor(tokens), attention_mask=bias).last_hidden_state.numpy()


def hidden(folder, tokens, mask, **arguments):
    with torch.inference_mode():
        return load(folder, **arguments)(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.numpy()


def test_report(family):
    for parity in (family[2]["parity"], family[2]["onnx_parity"]):
        assert parity["max_abs_diff"] <= 1e-4 and parity["int8_equal_share"] > 0.999
        assert parity["longest_text"] > 1000


def test_the_folder_names_its_family(family):
    title, folder, _, _ = family
    name = title.lower()
    content = json.loads((folder / "config.json").read_text())
    assert content["model_type"] == f"bidirectional_pplx_{name}"
    assert content["architectures"] == [f"PPLX{title}ContextualModel"]
    assert content["auto_map"]["AutoConfig"] == f"contextual_pplx_{name}.PPLX{title}Config"
    for path in folder.iterdir():
        assert "qwen3" not in path.name
        if path.suffix in (".py", ".md", ".json"):
            assert "qwen3" not in path.read_text().lower(), path.name
    assert not is_foreign(folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_computes_what_transformers_own_class_does(family, batch, attention):
    title, folder, _, _ = family
    valid = batch[1].astype(bool)
    expected = own_class(title, folder, *batch)
    found = hidden(folder, *batch, attn_implementation=attention)
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4, rtol=0)
    assert np.abs(own_class(title, folder, *batch, causal=True)[valid] - expected[valid]).max() > 1e-2


def test_padding_on_the_left_changes_nothing(family, batch):
    tokens, mask = batch
    left = np.stack([np.roll(row, -length) for row, length in zip(tokens, LENGTHS, strict=True)])
    found, expected = hidden(family[1], left, mask[:, ::-1].copy()), hidden(family[1], tokens, mask)
    for row, right, length in zip(found, expected, LENGTHS, strict=True):
        np.testing.assert_allclose(row[-length:], right[:length], atol=1e-4, rtol=0)


def test_the_onnx_graph_computes_what_transformers_own_class_does(family, batch):
    title, folder, _, _ = family
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    found = session.run(["last_hidden_state"], dict(zip(("input_ids", "attention_mask"), batch, strict=True)))[0]
    valid = batch[1].astype(bool)
    np.testing.assert_allclose(found[valid], own_class(title, folder, *batch)[valid], atol=1e-4, rtol=0)


def test_parity_fails_for_other_biases_and_norms(family):
    title, folder, _, model = family
    attention = dict(model.params["layers"]["attention"])
    if title == "Qwen2":
        attention["v"] = {**attention["v"], "bias": attention["v"]["bias"] * 0}
        fields = {}
    else:
        ones = np.ones((model.config.layers, model.config.head_dim), np.float32)
        attention |= {"q_norm": {"scale": ones}, "k_norm": {"scale": ones}}
        fields = {"qk_norm": True}
    layers = {**model.params["layers"], "attention": attention}
    config = dataclasses.replace(model.config, dtype="float32", **fields)
    other = dataclasses.replace(model, config=config, params={**model.params, "layers": layers})
    with pytest.raises(RuntimeError, match="hidden states differ"):
        check_parity(folder, other)


def test_two_families_do_not_merge(family_exports, tmp_path):
    from pplx_jax.checkpoints.merge_folders import merge_checkpoints

    models = [folder.parent / "model" for folder, _, _ in family_exports.values()]
    for pair in (models, models[::-1]):
        with pytest.raises(BadInput, match="qkv_bias is"):
            merge_checkpoints(*pair, tmp_path / "merged")
