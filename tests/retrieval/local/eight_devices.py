"""Searches the same vectors on this process's devices and by NumPy; prints what agrees as one JSON object."""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

from pplx_jax.retrieval.exact_search import rescore, top_k
from pplx_jax.retrieval.local.device_search import DeviceSearch
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors


def equal(found, expected) -> bool:
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def main(folder: pathlib.Path) -> dict[str, object]:
    rng = np.random.default_rng(0)
    width, count = 24, 531  # no multiple of the devices
    drawn = {
        "full_range": rng.integers(-127, 128, (count, width)),
        "ties": rng.integers(-1, 2, (count, width)) * (rng.random((count, width)) < 0.1),
        "copies": np.repeat(rng.integers(-127, 128, (3, width)), count // 3, axis=0),
    }
    places, excluded = rng.permutation(count), rng.random(count) < 0.2
    agree: dict[str, object] = {"devices": jax.device_count()}
    for name, vectors in drawn.items():
        vectors = vectors.astype(np.int8)
        paths = [folder / f"{name}{part}.npy" for part in range(2)]
        for path, part in zip(paths, np.split(vectors, [200]), strict=True):
            np.save(path, part)
        queries = np.concatenate([vectors[:4], np.zeros((1, width), np.int8)])
        shards = ShardedVectors(paths)
        streamed = DeviceSearch(shards, places, excluded, rows_per_device=16)
        kept = DeviceSearch(shards, places, excluded, rows_per_device=16, resident_bytes=1 << 20)
        for k in (1, 10, 1000):
            expected = top_k(queries, vectors, places, k, excluded=excluded)
            agree[f"{name}, {k} streamed"] = equal(streamed.top_k(queries, k), expected)
            agree[f"{name}, {k} kept"] = equal(kept.top_k(queries, k), expected)
            if k == 10 and name != "full_range":  # what the devices return for k alone
                found, _ = streamed._approximate(queries, k)
                agree[f"control {name}"] = equal(rescore(queries, found, shards.take, places, k), expected)
    return agree


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(main(pathlib.Path(temporary))))
    sys.exit()
