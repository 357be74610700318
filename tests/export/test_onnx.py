import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pplx_jax.checkpoints.huggingface.name_map import to_torch_layout
from pplx_jax.export import onnx_graph
from pplx_jax.export.onnx_parity import check_onnx_parity
from pplx_jax.models.transformer import rotary_frequencies


@pytest.fixture(scope="module")
def session(onnx_export):
    return onnxruntime.InferenceSession(str(onnx_export[0] / "onnx" / "model.onnx"))


@pytest.fixture(scope="module")
def torch_model(onnx_export):
    from transformers import AutoModel

    return AutoModel.from_pretrained(onnx_export[0], trust_remote_code=True).eval()


def padded(lengths, vocab_size):
    generator = np.random.default_rng(len(lengths))
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.where(mask, generator.integers(4, vocab_size, mask.shape), 0), mask.astype(np.int64)


def test_report(onnx_export):
    report = onnx_export[1]["onnx_parity"]
    assert report["max_abs_diff"] <= 1e-4 and report["int8_equal_share"] > 0.999
    assert report["longest_text"] == onnx_export[1]["parity"]["longest_text"]


def test_names_and_free_axes(session):
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("last_hidden_state", "tensor(float)", ["batch", "length", 48]),
        ("pooler_output", "tensor(float)", ["batch", 48]),
        ("pooler_output_int8", "tensor(int8)", ["batch", 48]),
        ("pooler_output_binary", "tensor(int8)", ["batch", 48]),
    ]


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 33), (600, 128), (2, 0)], ids=str)
def test_every_output_is_pytorchs(session, torch_model, config, lengths):
    ids, mask = padded(lengths, config.vocab_size)
    hidden, v, int8, binary = session.run(None, {"input_ids": ids, "attention_mask": mask})
    with torch.inference_mode():
        expected = torch_model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.double().numpy()
    np.testing.assert_allclose(hidden[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)
    mean = (expected * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]
    np.testing.assert_allclose(v, mean, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(int8, np.round(127 * np.tanh(v)))
    np.testing.assert_array_equal(binary, np.where(v >= 0, 1, -1))


def test_a_batch_without_tokens_is_zero(session):
    nothing = np.zeros((2, 0), np.int64)
    hidden, v, int8, _ = session.run(None, {"input_ids": nothing, "attention_mask": nothing})
    assert hidden.shape == (2, 0, 48) and v.shape == (2, 48)
    assert not int8.any() and np.isfinite(v).all()


def test_weights_are_beside_the_graph_and_fill_whole_pages(onnx_export, config):
    folder = onnx_export[0] / "onnx"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx_data"}
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    outside = [place for place in places if place]
    assert len(outside) == 2 + 11 * config.layers
    assert all(int(place["offset"]) % 4096 == 0 for place in outside)
    assert sum(int(place["length"]) for place in outside) == 4 * config.parameters
    assert (folder / "model.onnx").stat().st_size < 50_000


def test_rope_has_the_models_frequencies_to_the_last_bit(onnx_export, config):
    graph = onnx.load(onnx_export[0] / "onnx" / "model.onnx", load_external_data=False).graph
    constants = [onnx.numpy_helper.to_array(each) for each in graph.initializer if not each.external_data]
    expected = rotary_frequencies(config.head_dim, config.rope_theta)
    found = [each for each in constants if each.shape == expected.shape and np.allclose(each, expected)]
    assert len(found) == 1
    np.testing.assert_array_equal(found[0], expected)
    # Control: the same formula in another order rounds differently.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    assert not np.array_equal(np.float32(config.rope_theta) ** -exponents, expected)


def test_no_tensor_is_copied_whole_with_the_others(params, config, tmp_path, monkeypatch):
    held = []
    contiguous = np.ascontiguousarray

    def watched(array, dtype):
        held.append(np.shares_memory(contiguous(array, dtype), array))
        return contiguous(array, dtype)

    monkeypatch.setattr(onnx_graph.np, "ascontiguousarray", watched)
    onnx_graph.write_onnx(to_torch_layout(params, config), config, tmp_path)
    assert held and all(held)


def _without_q_norm(tensors):
    return {key: np.ones_like(tensor) if key.endswith("q_norm.weight") else tensor for key, tensor in tensors.items()}


def _one_value(tensors):
    key = "layers.2.mlp.down_proj.weight"
    changed = tensors[key].copy()
    changed[0, 0] += 0.1
    return {**tensors, key: changed}


@pytest.mark.parametrize("edit", [_without_q_norm, _one_value])
def test_parity_fails_for_another_graph(model, params, config, tmp_path, edit):
    path = onnx_graph.write_onnx(edit(to_torch_layout(params, config)), config, tmp_path)
    with pytest.raises(RuntimeError, match="hidden states differ"):
        check_onnx_parity(path, model)


@pytest.mark.parametrize(
    "operator, other, message",
    [("Round", "Floor", "int8 values"), ("GreaterOrEqual", "Less", "binary values"), ("Cos", "Sin", "hidden states")],
)
def test_parity_fails_for_another_operator(onnx_export, model, tmp_path, operator, other, message):
    graph = onnx.load(onnx_export[0] / "onnx" / "model.onnx")
    for node in graph.graph.node:
        node.op_type = other if node.op_type == operator else node.op_type
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match=message):
        check_onnx_parity(tmp_path / "model.onnx", model)
