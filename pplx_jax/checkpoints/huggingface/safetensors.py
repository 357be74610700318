"""Reads safetensors: all headers first, each tensor only when it is used, without memory maps.

Pages of a mapped file count as memory of the process as long as the map exists. A read needs memory for one tensor
only.
Format: https://huggingface.co/docs/safetensors.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pplx_jax.core.paths import is_plain_name

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
# The dtypes that imports and exports write: our name -> (NumPy's dtype, the format's name).
WRITTEN_DTYPES = {"float32": (np.dtype(np.float32), "F32"), "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16")}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `numpy.asarray` reads it.

    Attributes:
      path: the file.
      shape: of the tensor.
      dtype: of the stored values.
      offset: position in the file, in bytes.
    """

    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read().astype(dtype or self.dtype, copy=False)

    def read(self) -> np.ndarray:
        """Reads the whole tensor."""
        return self._values(0, math.prod(self.shape)).reshape(self.shape)

    def equals(self, other: "StoredTensor", values_at_once: int = 1 << 22) -> bool:
        """Returns whether shapes, dtypes and bytes are equal. Reads a part at a time."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        size = math.prod(self.shape)
        return all(
            self._values(start, values_at_once).tobytes() == other._values(start, values_at_once).tobytes()
            for start in range(0, size, values_at_once)
        )

    def _values(self, start: int, count: int) -> np.ndarray:
        count = min(count, math.prod(self.shape) - start)
        offset = self.offset + start * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, count, offset=offset)
        if values.size != count:
            raise OSError(f"{self.path} ended while it was read")
        return values


def stored_tensors(folder: pathlib.Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns the tensors in a folder's safetensors files by key, and one phrase for each problem with the files."""
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    names = sorted(path.name for path in folder.iterdir())
    if shards := [name for name in names if name.endswith(".safetensors")]:
        return {}, [f"{INDEX} is missing, the index of {', '.join(shards)}"]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return {}, [
            f"weights are pickles ({', '.join(pickles)}), which run code when they are read; "
            "convert them to safetensors on a machine where you trust them"
        ]
    return {}, [f"neither {SINGLE} nor {INDEX} exists"]


def _read_shards(folder: pathlib.Path) -> tuple[dict[str, StoredTensor], list[str]]:
    try:
        places = json.loads((folder / INDEX).read_bytes())["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"{INDEX} is not a valid index ({type(error).__name__}: {error})"]
    tensors, problems = {}, []
    readable = set()
    for name in names:
        if not is_plain_name(name):
            problems.append(f"{INDEX} names {name!r}, which is not a file in the folder")
        elif not (folder / name).is_file():
            problems.append(f"{INDEX} names {name}, which is missing")
        else:
            found, wrong = _read_header(folder / name)
            problems += wrong
            problems += [f"{key} is in two shards" for key in found if key in tensors]
            problems += [f"{key} of {name} is not in {INDEX}" for key in found if places.get(key) != name]
            tensors |= found
            if not wrong:
                readable.add(name)
    problems += [
        f"{key} is not in {name}, where {INDEX} expects it"
        for key, name in places.items()
        if name in readable and key not in tensors
    ]
    return tensors, problems


def _read_header(path: pathlib.Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns the tensors of one file. Every offset is checked against the file's length and the tensor's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            return {}, [f"{path.name} is truncated or not a safetensors file"]
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = dict(header.items())
        except (ValueError, AttributeError):
            return {}, [f"{path.name} has a damaged header"]
    tensors, problems = {}, []
    for key, entry in entries.items():
        tensor, problem = _read_entry(path, key, entry, start=8 + length, size=size)
        if tensor is not None:
            tensors[key] = tensor
        if problem:
            problems.append(problem)
    return tensors, problems


def _read_entry(
    path: pathlib.Path, key: str, entry: Mapping[str, Any], *, start: int, size: int
) -> tuple[StoredTensor | None, str | None]:
    try:
        name, shape = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        sound = all(type(value) is int and value >= 0 for value in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        sound, name, shape, first, last = False, "", (), 0, 0
    if not sound:
        return None, f"{key} of {path.name} has a damaged entry"
    if name not in DTYPES:
        return None, f"{key} of {path.name} has dtype {name}, not one of {', '.join(DTYPES)}"
    if last - first != math.prod(shape) * DTYPES[name].itemsize or start + last > size:
        return None, f"{key} of {path.name} has wrong offsets: the file is truncated or damaged"
    return StoredTensor(path, shape, DTYPES[name], start + first), None
