import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from helpers.odd_model import odd_config, odd_params

import pplx_jax.export
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.export_parity import check_parity


@pytest.mark.parametrize("kind", ["v1", "context_v1"])
def test_report(exports, kind):
    _, report = exports[kind]
    assert report["tensors"] == 2 + 11 * 3
    assert report["parity"]["max_abs_diff"] <= 1e-4
    assert report["parity"]["int8_equal_share"] > 0.999
    assert report["peak_bytes"] > 0
    json.dumps(report)


def test_the_folder_holds_what_it_should(exports):
    v1, contextual = ({path.name for path in exports[kind][0].iterdir()} for kind in ("v1", "context_v1"))
    assert contextual - v1 == {"contextual_pplx_qwen3.py"}
    assert {
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling",
        "tokenizer.json",
        "README.md",
    } <= v1
    assert not list(exports["v1"][0].parent.glob("*partial*"))


def test_the_code_is_that_of_the_package_byte_for_byte(exports):
    for path in (pathlib.Path(pplx_jax.export.__path__[0]) / "torch_model").glob("*.py"):
        assert (exports["context_v1"][0] / path.name).read_bytes() == path.read_bytes()


def test_model_card(exports):
    card = (exports["v1"][0] / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "| merged int8 ndcg@10 | 0.5000 |" in card
    assert "1024 tokens" in card
    other = (exports["context_v1"][0] / "README.md").read_text()
    assert "Not measured." in other and "AutoModel" in other


def test_shards_of_bfloat16_replace_a_former_export(exports, model_folder, tmp_path):
    output = tmp_path / "v1"
    shutil.copytree(exports["v1"][0], output)
    report = export_hf(model_folder, output, "v1", dtype="bfloat16", shard_bytes=100_000)
    assert report["parity"]["max_abs_diff"] <= 1e-4
    assert len(list(output.glob("model-*.safetensors"))) > 1
    assert not (output / "model.safetensors").exists()
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def _scrambled(weight):
    """The transposed weight read as if it were not: the bug of a forgotten transpose that keeps the shape."""
    return np.ascontiguousarray(weight.T).reshape(weight.shape)


def _tampered(params, edit):
    tree = {**params, "layers": {**params["layers"]}}
    edit(tree)
    return tree


def _swap_layers(tree):
    tree["layers"]["mlp"] = {name: {"kernel": p["kernel"][::-1]} for name, p in tree["layers"]["mlp"].items()}


def _transpose_a_kernel(tree):
    attention = dict(tree["layers"]["attention"])
    attention["o"] = {"kernel": np.stack([_scrambled(kernel) for kernel in attention["o"]["kernel"]])}
    tree["layers"]["attention"] = attention


def _drop_a_norm(tree):
    scale = tree["layers"]["attention"]["q_norm"]["scale"]
    tree["layers"]["attention"] = {**tree["layers"]["attention"], "q_norm": {"scale": np.ones_like(scale)}}


@pytest.mark.parametrize("edit", [_transpose_a_kernel, _swap_layers, _drop_a_norm])
def test_parity_fails_for_other_weights(exports, model, edit):
    other = dataclasses.replace(model, params=_tampered(model.params, edit))
    with pytest.raises(RuntimeError, match="hidden states differ"):
        check_parity(exports["v1"][0], other)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("config.json", '"rope_theta": 10000.0', '"rope_theta": 11000.0', "hidden states differ"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.01', "hidden states differ"),
        ("modeling_pplx_qwen3.py", "masked_fill(~visible", "masked_fill(visible", "hidden states differ"),
        (
            "tokenizer_config.json",
            '"split_special_tokens": true',
            '"split_special_tokens": false',
            "tokens of",
        ),
        ("st_quantize.py", "LEVELS = 127", "LEVELS = 126", "int8 values"),
        ("1_Pooling/config.json", "mean_tokens", "max_tokens", "int8 values"),
    ],
    ids=["rope", "epsilon", "mask", "special tokens", "quantizer", "pooling"],
)
def test_parity_fails_for_an_export_that_was_changed(exports, model, tmp_path, file, old, new, message):
    folder = tmp_path / "changed"
    shutil.copytree(exports["v1"][0], folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(RuntimeError, match=message):
        check_parity(folder, dataclasses.replace(model, kind="v1"))


def test_both_kinds_open_under_one_name(exports, tmp_path):
    from transformers import AutoModel

    found = []
    for kind in ("v1", "context_v1"):
        shutil.copytree(exports[kind][0], tmp_path / kind / "same")
        found.append(AutoModel.from_pretrained(tmp_path / kind / "same", trust_remote_code=True))
    assert [type(torch_model).__name__ for torch_model in found] == [
        "PPLXQwen3Model",
        "PPLXQwen3ContextualModel",
    ]


def test_a_missing_tensor_is_an_error(exports, model, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "missing"
    shutil.copytree(exports["v1"][0], folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="hidden states differ"):
        check_parity(folder, model)


def test_a_failed_export_leaves_nothing(model_folder, tmp_path, monkeypatch):
    from pplx_jax.export import export_hf as to_huggingface

    def fail(*_):
        raise RuntimeError("not equal")

    monkeypatch.setattr(to_huggingface, "check_parity", fail)
    with pytest.raises(RuntimeError, match="not equal"):
        export_hf(model_folder, tmp_path / "v1", "v1")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(model_folder, tmp_path):
    with pytest.raises(BadInput, match="dtype='float64'"):
        export_hf(model_folder, tmp_path / "v1", dtype="float64")
    with pytest.raises(BadInput, match="kind='v2'"):
        export_hf(model_folder, tmp_path / "v1", "v2")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="does not exist"):
        export_hf(tmp_path / "none", tmp_path / "v1")


@pytest.mark.parametrize(
    "files", [{"thesis.txt": ""}, {"modules.json": "[]", "config.json": '{"model_type": "bert"}'}, {"modules.json": ""}]
)
def test_what_is_no_export_is_not_replaced(model_folder, tmp_path, files):
    output = tmp_path / "mine"
    output.mkdir()
    for name, text in files.items():
        (output / name).write_text(text)
    with pytest.raises(BadInput, match="in the way and no export"):
        export_hf(model_folder, output)
    assert {path.name: path.read_text() for path in output.iterdir()} == files


def test_a_model_of_no_family_is_refused_before_anything_is_written(vocabulary, tmp_path):
    config = odd_config(vocabulary.size, qkv_bias=True)
    save_model(tmp_path / "model", config, vocabulary, odd_params(config), stage="pair")
    with pytest.raises(BadInput, match="no family of Hugging Face models has qk_norm=True and qkv_bias=True"):
        export_hf(tmp_path / "model", tmp_path / "v1")
    assert not (tmp_path / "v1").exists()


def test_left_over_parameters_are_an_error(config, vocabulary, params, tmp_path):
    params = {**params, "head": {"kernel": np.zeros((48, 4), np.float32)}}
    save_model(tmp_path / "model", config, vocabulary, params, stage="pair")
    with pytest.raises(BadInput, match="is of another model: head.kernel is"):
        export_hf(tmp_path / "model", tmp_path / "v1")
