"""Writes safetensors one tensor at a time, so that an export needs no second copy of the model."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from pplx_jax.checkpoints.huggingface.safetensors import INDEX, SINGLE, WRITTEN_DTYPES


def write_weights(tensors: Mapping[str, np.ndarray], folder: pathlib.Path, *, dtype: str, shard_bytes: int) -> None:
    """Writes `model.safetensors`, or numbered shards and their index.

    Args:
      tensors: key -> array or view. Each is cast, made contiguous and written in turn.
      folder: an existing folder.
      dtype: a key of `WRITTEN_DTYPES`.
      shard_bytes: maximum bytes of tensors per file. A larger tensor has a separate file.
    """
    shards = _shards(tensors, WRITTEN_DTYPES[dtype][0].itemsize, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / SINGLE, tensors, shards[0], dtype)
        return
    places = {}
    for number, keys in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, tensors, keys, dtype)
        places |= dict.fromkeys(keys, name)
    total = sum(tensor.size for tensor in tensors.values()) * WRITTEN_DTYPES[dtype][0].itemsize
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, np.ndarray], itemsize: int, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, tensor in tensors.items():
        size = tensor.size * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray], keys: list[str], dtype: str) -> None:
    """Writes one file: the length of the header in 8 bytes, the header, the tensors (the safetensors format)."""
    numpy_dtype, name = WRITTEN_DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in keys:
        start, end = end, end + tensors[key].size * numpy_dtype.itemsize
        header[key] = {"dtype": name, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the tensors
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for key in keys:
            tensor = np.ascontiguousarray(tensors[key], dtype=numpy_dtype)
            file.write(tensor.view(np.uint8).data)
