"""Mapped arrays: read-only, exact, and without a file descriptor."""

import gc
import os
import pathlib

import numpy as np
import pytest

from pplx_jax.core.memory_map import map_array


def mappings_of(path: pathlib.Path) -> int:
    return pathlib.Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.int64).reshape(3, 4), np.zeros((0, 5), np.int32)])
def test_values_and_no_way_to_write(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    mapped = map_array(tmp_path / "a.npy")
    assert mapped.dtype == array.dtype and mapped.tolist() == array.tolist()
    assert not mapped.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped[:1].flags.writeable = True


def test_no_descriptor_is_held_and_the_mapping_ends_with_its_last_view(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1000))
    descriptors = len(os.listdir("/proc/self/fd"))
    view = map_array(path)[10:20]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    gc.collect()
    assert mappings_of(path) == 1 and view[0] == 10
    del view
    gc.collect()
    assert mappings_of(path) == 0


@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_files_that_are_not_arrays(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError):
        map_array(tmp_path / "a.npy")


def test_a_truncated_file(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1000))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="8120 bytes, but its header describes 8128"):
        map_array(tmp_path / "a.npy")
