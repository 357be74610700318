"""What differs between releases of transformers, 4.51 to 5.x, as far as one release can show it."""

import ast
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from helpers.exported import IDS, MASK, hidden, load

import pplx_jax.export

FILES = sorted(pathlib.Path(pplx_jax.export.__path__[0]).glob("torch_model/*.py"))
# Named so in every release since Qwen3's first, 4.51; in particular no helper that builds masks.
ALLOWED = {
    "transformers.Qwen3Config",
    "transformers.Qwen3Model",
    "transformers.PreTrainedTokenizerFast",
    "transformers.modeling_outputs.BaseModelOutput",
}


@pytest.fixture(scope="module")
def expected(exports):
    return hidden(load(exports["v1"][0]))


@pytest.fixture
def folder(exports, tmp_path):
    """A copy to change the configuration of."""
    return pathlib.Path(shutil.copytree(exports["v1"][0], tmp_path / "changed"))


def configure(folder, remove=(), **entries):
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in remove}
    path.write_text(json.dumps(config | entries))


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_only_lasting_names_are_imported(file):
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {name for name in found if name.startswith("transformers")} <= ALLOWED


def test_layers_may_return_tuples(exports, expected):
    model = load(exports["v1"][0])
    for layer in model.layers:
        layer.forward = lambda *args, forward=layer.forward, **kwargs: (forward(*args, **kwargs), None)
    np.testing.assert_array_equal(hidden(model), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_a_mask_every_token_sees_all(exports, expected, attention):
    model = load(exports["v1"][0], attn_implementation=attention)
    with torch.inference_mode():
        alone = model(IDS[:1]).last_hidden_state[0].numpy()
        later = model(torch.cat([IDS[:1, :-1], IDS[:1, :1]], dim=1)).last_hidden_state[0].numpy()
    np.testing.assert_allclose(alone, expected[:7], atol=1e-4, rtol=0)
    assert np.abs(alone[0] - later[0]).max() > 1e-3  # the first token sees the last


def test_sdpa_is_told_that_there_is_no_causal_mask(exports):
    """Before transformers 4.53 a missing mask meant a causal one."""
    model, told = load(exports["v1"][0], attn_implementation="sdpa"), []
    for layer in model.layers:
        layer.forward = lambda *args, forward=layer.forward, **kwargs: (
            told.append(kwargs.get("is_causal")), forward(*args, **kwargs)
        )[1]  # fmt: skip
    model(IDS[:1])
    model(IDS, MASK)
    assert told == [False] * len(model.layers) + [None] * len(model.layers)


def test_rope_by_either_key(folder, expected):
    theta = json.loads((folder / "config.json").read_text())["rope_theta"]
    configure(folder, remove=["rope_theta"], rope_parameters={"rope_theta": theta, "rope_type": "default"})
    np.testing.assert_array_equal(hidden(load(folder)), expected)
    assert load(folder).config.to_dict()["rope_parameters"]["rope_theta"] == theta
    configure(folder, rope_parameters={"rope_theta": 2 * theta, "rope_type": "default"})
    assert np.abs(hidden(load(folder)) - expected).max() > 1e-3


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_by_either_key(folder, key):
    configure(folder, remove=["dtype"], **{key: "bfloat16"})
    assert load(folder, dtype="auto").dtype == torch.bfloat16


def test_a_configuration_without_the_newer_entries(folder, expected):
    configure(folder, remove=["is_causal", "use_bidirectional_attention", "dtype", "max_window_layers"])
    np.testing.assert_array_equal(hidden(load(folder)), expected)


def test_arguments_that_callers_of_some_release_pass(exports, expected):
    old = {"use_cache": False, "past_key_values": None, "cache_position": torch.arange(7), "output_attentions": False}
    np.testing.assert_array_equal(hidden(load(exports["v1"][0]), **old), expected)
    for dtype in (torch.bool, torch.int32, torch.float32):
        np.testing.assert_array_equal(hidden(load(exports["v1"][0]), MASK.to(dtype)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["v1", "context_v1"])
def test_transformers_own_qwen3_with_a_mask_is_the_same(exports, expected, kind, attention):
    from transformers import Qwen3Model

    model = Qwen3Model.from_pretrained(exports[kind][0], attn_implementation=attention).eval()
    assert type(model) is Qwen3Model
    bias = torch.zeros(2, 1, 7, 7).masked_fill(~MASK.bool()[:, None, None, :], torch.finfo(torch.float32).min)
    np.testing.assert_allclose(hidden(model, bias), expected, atol=1e-4, rtol=0)
    causal = bias.masked_fill(torch.ones(7, 7).triu(1).bool(), torch.finfo(torch.float32).min)
    assert np.abs(hidden(model, causal) - expected).max() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_own_qwen3_heeds_the_configuration(exports, expected, attention):
    from transformers import Qwen3Model
    from transformers.masking_utils import create_causal_mask

    if '"is_causal"' not in pathlib.Path(create_causal_mask.__code__.co_filename).read_text():
        pytest.skip("this transformers is older than 5.2")
    model = Qwen3Model.from_pretrained(exports["v1"][0], attn_implementation=attention).eval()
    np.testing.assert_allclose(hidden(model), expected, atol=1e-4, rtol=0)
    with torch.inference_mode():  # nothing padded: no mask is made
        alone = model(IDS[:1], MASK[:1]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(alone, expected[:7], atol=1e-4, rtol=0)
