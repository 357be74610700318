"""Many shards read as one array."""

import numpy as np
import pytest

from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors


@pytest.fixture
def shards(tmp_path):
    """Shards of 3, 0, 1 and 4 rows, and all rows."""
    rows = np.random.default_rng(0).integers(-127, 128, size=(8, 5)).astype(np.int8)
    paths = [tmp_path / f"{number}.npy" for number in range(4)]
    for path, part in zip(paths, np.split(rows, [3, 3, 4]), strict=True):
        np.save(path, part)
    return ShardedVectors(paths), rows


def test_ranges_and_rows_are_those_of_the_whole(shards):
    vectors, rows = shards
    assert (len(vectors), vectors.shape, vectors.dtype) == (8, (8, 5), np.int8)
    for begin in range(9):
        for end in range(9):
            np.testing.assert_array_equal(vectors[begin:end], rows[begin:end])
    chosen = np.array([7, 0, 3, 3, 2, 5])
    np.testing.assert_array_equal(vectors.take(chosen), rows[chosen])
    assert vectors.take(np.zeros(0, np.int64)).shape == (0, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_packed_and_float_rows(tmp_path, dtype):
    rows = np.random.default_rng(1).integers(0, 255, size=(7, 3)).astype(dtype)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", rows[4 * number : 4 * number + 4])
    vectors = ShardedVectors([tmp_path / "0.npy", tmp_path / "1.npy"])
    np.testing.assert_array_equal(vectors[2:6], rows[2:6])
    np.testing.assert_array_equal(vectors.take(np.array([6, 1])), rows[[6, 1]])


@pytest.mark.parametrize("content", [np.zeros((2, 4), np.int8), np.zeros((2, 5), np.uint8), np.zeros(2, np.int8)])
def test_a_shard_of_another_shape_or_type_is_refused(shards, tmp_path, content):
    np.save(tmp_path / "2.npy", content)
    with pytest.raises(ValueError, match="2.npy holds"):
        ShardedVectors([tmp_path / f"{number}.npy" for number in range(4)])


def test_a_file_that_ends_early_is_named(shards, tmp_path):
    vectors, _ = shards
    content = (tmp_path / "3.npy").read_bytes()
    (tmp_path / "3.npy").write_bytes(content[:-1])
    with pytest.raises(ValueError):
        ShardedVectors([tmp_path / "3.npy"])
    with pytest.raises(OSError, match="3.npy ended while it was read"):
        vectors.take(np.array([7]))
