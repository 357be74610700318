import json

import numpy as np
import pytest
from safetensors import safe_open

from pplx_jax.export.weights import write_weights

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # a view that is not contiguous
    "b": np.linspace(0, 1, 7, dtype=np.float32),
    "c": np.ones((2, 2), np.float32),
}


def read(path):
    import torch  # safetensors' NumPy reader knows no bfloat16

    with safe_open(path, framework="pt") as file:
        return {key: (file.get_tensor(key).to(torch.float32).numpy()) for key in file.keys()}  # noqa: SIM118


def test_a_single_file(tmp_path):
    write_weights(TENSORS, tmp_path, dtype="float32", shard_bytes=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    for key, tensor in read(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, TENSORS[key])


@pytest.mark.parametrize("shard_bytes, files", [(1, 3), (48 + 28, 2)])
def test_shards_and_their_index(tmp_path, shard_bytes, files):
    write_weights(TENSORS, tmp_path, dtype="float32", shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (12 + 7 + 4)
    assert len(set(index["weight_map"].values())) == files == len(list(tmp_path.glob("*.safetensors")))
    for key, name in index["weight_map"].items():
        np.testing.assert_array_equal(read(tmp_path / name)[key], TENSORS[key])


def test_bfloat16_rounds_to_nearest(tmp_path):
    write_weights(TENSORS, tmp_path, dtype="bfloat16", shard_bytes=10**9)
    found = read(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found["a"], TENSORS["a"])
    np.testing.assert_allclose(found["b"], TENSORS["b"], rtol=2**-8)
