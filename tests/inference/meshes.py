"""Encodes the same documents on meshes of this process's (or these processes') devices; a folder gets the vectors.

Run as a program: `meshes.py FOLDER NAME...`. Process 0 writes FOLDER/NAME.npy, and every process prints a checksum of
what it has, and the tokens that it reported.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

from pplx_jax.inference.packed_encoder import PackedEncoder
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import MESH_AXES, Mesh
from pplx_jax.parallel.processes import Processes, is_first, joined

# Wide enough for products whose sums a matrix library cuts into parts.
CONFIG = Qwen3Config(
    vocab_size=96, width=128, mlp_width=512, layers=2, query_heads=4, kv_heads=4, head_dim=32, max_length=512,
    embedding_init_std=1.0, dtype="float32",
)  # fmt: skip
MESHES = {
    "data": Mesh(data=-1),
    "data_fsdp": Mesh(data=2, fsdp=-1),
    "tensor_sequence": Mesh(data=-1, tensor=2, sequence=2),
}
# Two processes of four devices as neighbours in a torus: along the mesh axis the processes alternate.
TORUS = [0, 4, 1, 5, 2, 6, 3, 7]


def documents() -> tuple[list[np.ndarray], np.ndarray]:
    """Chunks of documents of every length, some empty, some over the limit; more than one pass of eight devices."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 5, 120)
    sizes = generator.geometric(1 / 60, counts.sum()) - 1
    sizes[::40] = 700
    return [generator.integers(2, CONFIG.vocab_size, size) for size in sizes], counts


def pool(mesh: jax.sharding.Mesh | None, *, placed: bool = False, shared: bool = False) -> tuple[np.ndarray, int]:
    """Pooled vectors of `documents` [C, D], and the tokens that this process reports.

    `placed` gives the encoder parameters that are on the mesh already.
    """
    params = initial_params(CONFIG, 1, mesh) if placed else jax.tree.map(np.asarray, initial_params(CONFIG, 1))
    encoder = PackedEncoder(
        CONFIG, params, pad_id=0, separator_id=1, batch_tokens=512, slots=8, mesh=mesh, shared=shared
    )
    counted: list[int] = []
    vectors = encoder.pool(*documents(), overflow="split", done=lambda texts, tokens: counted.append(tokens))
    return vectors, sum(counted)


def main(folder: pathlib.Path, names: list[str]) -> dict[str, tuple[str, int]]:
    found = {}
    for name in names:
        kind, _, how = name.partition("-")
        devices = [jax.devices()[place] for place in TORUS] if how == "torus" else jax.devices()
        if kind == "one":
            vectors, tokens = pool(None)
        elif how == "shared":
            vectors, tokens = pool(MESHES[kind].build(jax.local_devices()), shared=True)
        else:
            sizes = tuple(MESHES[kind].sizes(len(devices)).values())
            mesh = jax.sharding.Mesh(np.array(devices).reshape(sizes), MESH_AXES)
            vectors, tokens = pool(mesh, placed=how in ("placed", "torus"))
        if is_first():
            np.save(folder / f"{name}.npy", vectors)
        found[name] = hashlib.sha256(vectors.tobytes()).hexdigest(), tokens
    return found


if __name__ == "__main__":
    with joined(Processes()):
        print(json.dumps(main(pathlib.Path(sys.argv[1]), sys.argv[2:])))
