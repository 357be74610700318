"""Reading safetensors: the same values as the format's own library, and a message for every kind of damage."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pplx_jax.checkpoints.huggingface.safetensors import INDEX, SINGLE, stored_tensors

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.linspace(-3, 3, 7).to(torch.bfloat16),
    "c": torch.linspace(-1, 1, 6).reshape(2, 1, 3).to(torch.float16),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 5),
}


@pytest.fixture
def single(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def edit_header(path, change):
    """Rewrites a file's header; the tensors stay where they are."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])


def test_every_dtype_and_shape(single):
    found, problems = stored_tensors(single)
    assert found.keys() == TENSORS.keys() and not problems
    for key, tensor in TENSORS.items():
        assert np.asarray(found[key]).shape == tuple(tensor.shape)
        np.testing.assert_array_equal(np.asarray(found[key], np.float64), tensor.double().numpy())


def test_shards(sharded):
    found, problems = stored_tensors(sharded)
    assert set(found) == {"a", "b"} and not problems


def test_nothing_is_read_before_it_is_asked_for(single):
    found, _ = stored_tensors(single)
    (single / SINGLE).write_bytes(b"")
    with pytest.raises(OSError, match="ended while it was read"):
        found["a"].read()


def test_equal_bytes_are_found_a_part_at_a_time(tmp_path):
    table = torch.randn(50, 3)
    save_file({"a": table, "b": table.clone(), "c": table + 1e-7, "d": table.half()}, tmp_path / SINGLE)
    found, _ = stored_tensors(tmp_path)
    assert found["a"].equals(found["b"], values_at_once=7)
    assert not found["a"].equals(found["c"], values_at_once=7) and not found["a"].equals(found["d"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda header: header["a"].update(dtype="F8_E4M3"), "a of model.safetensors has dtype F8_E4M3"),
        (lambda header: header["a"].update(shape=[3, 5]), "a of model.safetensors has wrong offsets"),
        (lambda header: header["a"].update(data_offsets=[0, 10**6]), "a of model.safetensors has wrong offsets"),
        (lambda header: header["a"].update(data_offsets=[-48, 0]), "a of model.safetensors has a damaged entry"),
        (lambda header: header["a"].pop("shape"), "a of model.safetensors has a damaged entry"),
        (lambda header: header.update(a=3), "a of model.safetensors has a damaged entry"),
    ],
)
def test_a_damaged_entry_is_named_and_the_others_are_read(single, change, words):
    edit_header(single / SINGLE, change)
    found, problems = stored_tensors(single)
    assert found.keys() == TENSORS.keys() - {"a"}
    assert len(problems) == 1 and words in problems[0]


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 64, (4).to_bytes(8, "little") + b"{]  "])
def test_a_file_that_is_none(tmp_path, content):
    (tmp_path / SINGLE).write_bytes(content)
    found, problems = stored_tensors(tmp_path)
    assert not found and len(problems) == 1 and SINGLE in problems[0]


@pytest.mark.parametrize(
    "weight_map, words",
    [
        ({"a": "one.safetensors"}, None),  # two.safetensors is no part of the model then
        ({"a": "one.safetensors", "b": "three.safetensors"}, "names three.safetensors, which is missing"),
        ({"a": "one.safetensors", "b": "../two.safetensors"}, "which is not a file in the folder"),
        ({"a": "two.safetensors"}, "b of two.safetensors is not in"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "b is not in one.safetensors, where"),
    ],
)
def test_an_index_that_is_off(sharded, weight_map, words):
    write_index(sharded, weight_map)
    _, problems = stored_tensors(sharded)
    assert any(words in problem for problem in problems) if words else not problems


def test_a_tensor_in_two_shards(sharded):
    save_file(TENSORS, sharded / "two.safetensors")
    assert "a is in two shards" in stored_tensors(sharded)[1]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_index(sharded, content):
    (sharded / INDEX).write_text(content)
    assert stored_tensors(sharded)[1][0].startswith(f"{INDEX} is not a valid index")


def test_no_weights_at_all(tmp_path):
    assert stored_tensors(tmp_path)[1] == [f"neither {SINGLE} nor {INDEX} exists"]
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert f"{INDEX} is missing, the index of" in stored_tensors(tmp_path)[1][0]
