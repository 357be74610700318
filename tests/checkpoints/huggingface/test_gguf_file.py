"""GGUF files: every tensor has the values of the format's definition under the right name, or the file is refused."""

import gguf
import numpy as np
import pytest
from helpers.gguf_model import HEAD_DIM, KINDS, write_gguf

from pplx_jax.checkpoints.huggingface import gguf_file
from pplx_jax.checkpoints.huggingface.gguf_file import TYPES, read_gguf
from pplx_jax.checkpoints.huggingface.name_map import torch_shapes
from pplx_jax.checkpoints.huggingface.reader import ImportPlan
from pplx_jax.core.errors import BadInput


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def written(request, tmp_path_factory):
    """(architecture, path, values by Hugging Face key)."""
    path = tmp_path_factory.mktemp(request.param) / "model.gguf"
    return request.param, path, write_gguf(path, request.param)


def test_the_file_has_every_type():
    assert {*KINDS.values(), "F32"} == set(TYPES)


def test_every_tensor_has_its_values(written):
    architecture, path, values = written
    file = read_gguf(path)
    assert file.problems == [] and file.tensors.keys() == values.keys() == torch_shapes(file.source.config).keys()
    for key, expected in values.items():
        found = np.asarray(file.tensors[key])
        assert found.shape == expected.shape == file.tensors[key].shape
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=1e-6, atol=1e-7, err_msg=key)
    for name, heads in (("q", 4), ("k", 2)):
        tensor = file.tensors[f"layers.0.self_attn.{name}_proj.weight"]
        assert tensor.heads == (heads if architecture == "llama" else 0)


def test_the_configuration(written):
    architecture, path, _ = written
    source = read_gguf(path).source
    config = source.config
    assert (config.width, config.layers, config.query_heads, config.kv_heads, config.head_dim) == (
        256,
        2,
        4,
        2,
        HEAD_DIM,
    )
    assert (config.vocab_size, config.max_length, config.rope_theta, config.rms_norm_eps) == (350, 2048, 5e4, 1e-5)
    assert (config.qk_norm, config.qkv_bias) == (architecture == "qwen3", architecture == "qwen2")
    assert config.causal and source.tied


def test_layers_and_precision(written):
    _, path, values = written
    plan = ImportPlan.of(path, "float32", layers=1)
    assert plan.described.config.layers == 1 and "layers.1.mlp.up_proj.weight" not in plan.tensors
    assert plan.described.config.dtype == "bfloat16"  # of the tensors that are stored so
    params = plan.load().params
    np.testing.assert_allclose(
        params["layers"]["mlp"]["up"]["kernel"][0], values["layers.0.mlp.up_proj.weight"].T, rtol=1e-6
    )
    for layers in (0, 3):
        with pytest.raises(BadInput, match=f"layers={layers} of an import: .* has 2; give 1 to 2"):
            ImportPlan.of(path, "float32", layers=layers)


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"attention__sliding_window": 64}, "llama.attention.sliding_window is 64"),
        ({"expert_count": 8}, "llama.expert_count is 8"),
        ({"rope__dimension_count": 32}, "llama.rope.dimension_count is 32, not the head dimension 64"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, metadata, words):
    write_gguf(tmp_path / "model.gguf", "llama", **metadata)
    with pytest.raises(BadInput) as caught:
        read_gguf(tmp_path / "model.gguf")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_neutral_values_are_taken(tmp_path):
    write_gguf(tmp_path / "model.gguf", "llama", rope__scaling__type="none", expert_count=0)
    read_gguf(tmp_path / "model.gguf")


def test_other_types_tensors_and_architectures(written, tmp_path, monkeypatch):
    _, path, _ = written
    monkeypatch.setattr(gguf_file, "TYPES", ("F32",))
    with pytest.raises(BadInput, match="token_embd.weight has type Q8_0, not one of F32"):
        ImportPlan.of(path, "float32")
    monkeypatch.setattr(gguf_file, "_NAMES", {})
    with pytest.raises(BadInput, match="token_embd.weight is left over|embed_tokens.weight is missing"):
        ImportPlan.of(path, "float32")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadInput, match="architecture 'gemma3' is not supported; give a model of qwen3, llama, qwen2"):
        read_gguf(tmp_path / "other.gguf")


@pytest.mark.parametrize("change", [lambda content: content[:-1000], lambda content: b"PK" + content, lambda _: b""])
def test_a_damaged_file(written, tmp_path, change):
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(change(written[1].read_bytes()))
    with pytest.raises(BadInput, match="is not a whole GGUF file"):
        read_gguf(damaged)
