"""tokamax's attention on TPUs (its splash kernel) by the schedule of the TPU's compiler, where tokamax is installed.

`benchmarks/kernels.py` may call `figures`. tokamax asks the default device what it may run on, so the chip it is
compiled for is made the default one; nothing runs.

Usage: python benchmarks/tokamax_peer.py [--devices v5e v5p v6e] [--length 4096] [--heads 16]
"""

import argparse
import importlib.util
import json
import sys

from tpu_schedule import Kernel, compile_and_read

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
KV_HEADS, HEAD_DIM = 8, 128
TILE = 512 * 512
MISSING = "tokamax is not installed (pip install tokamax)"


def worker(backward: bool, topology: str, length: int, heads: int) -> dict:
    """Compiles one pass, in this process; says in which grid its kernels run."""
    sys.argv[1:] = []  # tokamax reads the command line

    import jax
    import jax.numpy as jnp
    import tokamax
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    mesh = jax.sharding.Mesh([chip], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [
        jax.ShapeDtypeStruct((1, length, count, HEAD_DIM), jnp.bfloat16, sharding=sharding)
        for count in (heads, KV_HEADS, KV_HEADS)
    ]

    def attend(query, key, value):
        return tokamax.dot_product_attention(query, key, value, implementation="mosaic")

    def loss(*arguments):
        return attend(*arguments).astype(jnp.float32).sum()

    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else attend
    with jax.set_mesh(mesh), jax.default_device(chip):
        traced = jax.jit(function).trace(*shapes)
        memory = traced.lower().compile().memory_analysis()
    return {"temporary_bytes": memory.temp_size_in_bytes, "grids": dict(_grids(traced.jaxpr.jaxpr))}


def _grids(jaxpr):
    """(name, grid) of every kernel in a program."""
    for equation in jaxpr.eqns:
        if mapping := equation.params.get("grid_mapping"):
            name = equation.params.get("name") or str(equation.params["name_and_src_info"])
            yield name.split(" ")[0], [int(size) for size in mapping.grid]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _grids(inner)


def figures(device: str, length: int, heads: int, *, backward: bool) -> dict:
    """As `benchmarks/kernels.py` reports its peers: a grid step of each kernel that belongs to the pass, in full.

    Returns:
      `error` alone where tokamax is missing or does not compile.
    """
    if importlib.util.find_spec("tokamax") is None:
        return {"error": MISSING}
    command = [__file__, "--worker", str(int(backward)), TOPOLOGIES[device], str(length), str(heads)]
    try:
        found, kernels = compile_and_read(command)
    except RuntimeError as error:
        return {"error": str(error)[:200]}
    tiles = length * length * heads / TILE
    chosen: list[tuple[Kernel, int]] = []
    for name, grid in found.pop("grids").items():
        if backward == ("fwd" in name or "forward" in name):
            continue
        kernel = next(kernel for found_name, kernel in kernels.items() if found_name.startswith(name))
        steps = 1
        for size in grid:
            steps *= size
        chosen.append((kernel, steps))
    bundles = sum(kernel.bundles * steps for kernel, steps in chosen)
    return found | {
        "bundles_per_tile": bundles / tiles,
        "matrix_slots_share": sum(k.matrix_share() * k.bundles * steps for k, steps in chosen) / bundles,
        "spills": sum(kernel.spills() for kernel, _ in chosen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        backward, topology, length, heads = arguments.worker
        print(json.dumps(worker(bool(int(backward)), topology, int(length), int(heads))))
        return
    for device in arguments.devices:
        for backward in (False, True):
            found = figures(device, arguments.length, arguments.heads, backward=backward)
            print(device, "backward" if backward else "forward", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
