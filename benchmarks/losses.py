"""The vocabulary loss and the contrastive sums compared with their peers, by the programs that the TPU compiler makes.

Loss and gradients at the sizes of both models, on one chip. There are two measures of time, in milliseconds:
- least: operations one after another, each at the peak of the matrix units or of HBM, whichever takes longer. This is a
  lower bound; for tokamax it counts FLOPs only.
- scheduled: XLA's operations by the compiler's estimate of their cycles, if it prints one, and our kernels by their
  schedules, or by the lower bound if that is longer.
No TPU is needed. tokamax is compared if it is installed.

Usage: python benchmarks/losses.py [--devices v5e v5p v6e] [--widths 1024 2560] [--json]
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from hlo_cost import cost_of
from tpu_schedule import Kernel, compile_and_read

from pplx_jax.plan.libtpu import ENVIRONMENT

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Peak FLOP/s of bfloat16 products, HBM bytes/s, clock, cores that share a kernel's parallel axis.
PEAKS = {"v5e": (197e12, 819e9, 1.5e9, 1), "v5p": (459e12, 2765e9, 1.75e9, 2), "v6e": (918e12, 1640e9, 1.75e9, 1)}
VOCABULARY, TOKENS = 151_936, 8192
QUERIES, CANDIDATES = 16_384, 16_384 * 8
PEERS = {
    "vocab_cross_entropy": ("ours", "xla_chunked", "xla_whole", "tokamax"),
    "masked_logsumexp": ("ours", "xla_whole"),
}


def worker(operation: str, name: str, device: str, width: int) -> dict:
    """Compiles one program, in this process."""
    import contextlib

    sys.argv[1:] = []  # tokamax reads the command line

    folder = tempfile.mkdtemp()
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"  # the only way to get the text for v6e

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[device]).devices[0]
    mesh = jax.sharding.Mesh([chip], ("data",))

    def array(*shape, dtype=jnp.float32):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    if operation == "vocab_cross_entropy":
        loss = _vocabulary_loss(name)
        arguments = array(TOKENS, width, dtype=jnp.bfloat16), array(VOCABULARY, width)
        arguments += array(TOKENS, dtype=jnp.int32), array(TOKENS)
    else:
        loss = _contrastive_loss(name)
        arguments = array(QUERIES, width), array(CANDIDATES, width)
    # tokamax looks at the default device.
    default = jax.default_device(chip) if name == "tokamax" else contextlib.nullcontext()
    with jax.set_mesh(mesh), default:
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    text = next(pathlib.Path(folder).glob("*jit_loss*after_optimizations.txt")).read_text()
    flops, bandwidth, clock, _ = PEAKS[device]
    settings = {"peak_flops": flops, "hbm_bytes_per_second": bandwidth, "trips": _trips(operation, name, device, width)}
    cost = cost_of(text, **settings)
    try:  # the dump has no estimates, and this text is not always available
        cycles = cost_of(compiled.as_text(), **settings).cycles
    except Exception:
        cycles = 0.0
    return {
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "hbm_bytes": cost.hbm_bytes,
        "matrix_flops": cost.matrix_flops,
        "least_milliseconds": cost.floor_seconds * 1e3,
        "scheduled_milliseconds": cycles / clock * 1e3 or None,
        "kernels": cost.kernels,
    }


def _vocabulary_loss(name: str):
    import jax
    import jax.numpy as jnp

    from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy

    def loss(hidden, table, targets, weights):
        if name == "tokamax":  # it has no weights and takes the table transposed
            import tokamax

            table = table.astype(hidden.dtype).T
            return tokamax.linear_softmax_cross_entropy_loss(hidden, targets, table, implementation="mosaic_tpu")
        if name == "xla_whole":
            import optax

            table = table.astype(hidden.dtype)
            logits = jax.lax.dot_general(hidden, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights)
        implementation = "chunked" if name == "xla_chunked" else None
        return vocab_cross_entropy(hidden, table, targets, weights, implementation=implementation)[0]

    return loss


def _contrastive_loss(name: str):
    import jax.numpy as jnp

    from pplx_jax.kernels.masked_logsumexp import BLOCK, masked_logsumexp, reference

    def loss(query, candidate):
        # The triplet stage: a query's own document is the first of its eight.
        queries, candidates = query.shape[0], candidate.shape[0]
        groups = jnp.arange(queries), jnp.where(jnp.arange(candidates) % 8, -1, jnp.arange(candidates) // 8)
        if name == "ours":
            return masked_logsumexp(query, candidate, *groups, temperature=0.03, block=BLOCK).logsumexp.sum()
        everything = jnp.full(queries, jnp.inf), jnp.ones(candidates, bool)
        return reference.reference(query, candidate, *groups, jnp.float32(0.03), *everything).logsumexp.sum()

    return loss


def _tiles(device: str, width: int):
    from pplx_jax.kernels.vocab_cross_entropy.tiles import choose_tiles

    kind = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}[device]
    return choose_tiles(TOKENS, width, 2, kind)


def _trips(operation: str, name: str, device: str, width: int) -> int:
    """Trips of the loop over positions, which all have a weight here, or over candidates."""
    from pplx_jax.kernels.masked_logsumexp import BLOCK as candidates
    from pplx_jax.kernels.vocab_cross_entropy.chunked import CHUNK as positions

    if operation == "masked_logsumexp":
        return CANDIDATES // candidates
    return -(-TOKENS // (positions if name == "xla_chunked" else _tiles(device, width).chunk))


def kernel_figures(device: str, width: int, kernels: dict[str, Kernel]) -> dict[str, dict]:
    """Returns the figures of our two kernels over all positions."""
    flops, bandwidth, clock, cores = PEAKS[device]
    tiles = _tiles(device, width)
    blocks, chunks = -(-VOCABULARY // tiles.block_v), -(-TOKENS // tiles.chunk)
    steps = chunks * blocks * tiles.chunk // tiles.block_t
    parts = width // tiles.block_d(width)
    scores, table = 2.0 * VOCABULARY * TOKENS, 2.0 * VOCABULARY * width * chunks
    moved = {"vocab_scores": scores + table, "vocab_gradients": parts * scores + 5 * table}
    figures = {}
    for name, products, count in (("vocab_scores", 1, steps), ("vocab_gradients", 2, steps * parts)):
        kernel, work = kernels[name], 2.0 * products * VOCABULARY * TOKENS * width
        least = max(work / flops, moved[name] / bandwidth)
        figures[name] = {
            "bundles_per_step": kernel.bundles,
            "matrix_slots_share": kernel.matrix_share(),
            "spills_per_step": kernel.spills(),
            "matrix_flops": work,
            "hbm_bytes": moved[name],
            "least_milliseconds": least * 1e3,
            "scheduled_milliseconds": max(kernel.bundles * count / cores / clock, least) * 1e3,
        }
    return figures


def run(operation: str, name: str, device: str, width: int) -> dict:
    """Returns the figures of one implementation, or its error if it does not compile."""
    if name == "tokamax" and importlib.util.find_spec("tokamax") is None:
        return {"error": "tokamax is not installed"}
    command = [__file__, "--worker", operation, name, device, str(width)]
    least = 6.0 * VOCABULARY * TOKENS * width / PEAKS[device][0] * 1e3  # three products, each once
    if (operation, name) == ("vocab_cross_entropy", "ours"):
        found, kernels = compile_and_read(command)
        figures = kernel_figures(device, width, kernels)
        for key in ("matrix_flops", "hbm_bytes", "least_milliseconds"):
            found[key] += sum(kernel[key] for kernel in figures.values())
        # XLA's operations next to the kernels count with their lower bound if the compiler gives no estimate.
        xla = found["scheduled_milliseconds"] or found["least_milliseconds"] - sum(
            kernel["least_milliseconds"] for kernel in figures.values()
        )
        found["scheduled_milliseconds"] = xla + sum(kernel["scheduled_milliseconds"] for kernel in figures.values())
        found["kernels"] = figures
    else:
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "rror" in line or "memory" in line]
            return {"error": (lines or ["failed"])[-1][:300]}
        found = json.loads(done.stdout.splitlines()[-1])
        if name == "tokamax":  # the scores twice, two gradients; the HBM bytes of its kernels are unknown
            found["matrix_flops"] = 8.0 * VOCABULARY * TOKENS * width
            found["least_milliseconds"] += 8 / 6 * least
            found["hbm_bytes"] = found["scheduled_milliseconds"] = None
    if operation == "vocab_cross_entropy":
        found["matrix_share"] = least / (found["scheduled_milliseconds"] or found["least_milliseconds"])
    return found


def on_cpu() -> dict:
    """Seconds of the contrastive sums on this machine, and the ratio of ours to the whole matrix; best of three."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    generator = np.random.default_rng(0)
    jax.config.update("jax_platforms", "cpu")
    query, candidate = (jnp.asarray(generator.normal(size=(n, 256)) / 16, jnp.float32) for n in (2048, 16384))
    seconds = {}
    for name in PEERS["masked_logsumexp"]:
        function = jax.jit(jax.value_and_grad(_contrastive_loss(name), argnums=(0, 1)))
        jax.block_until_ready(function(query, candidate))
        times = []
        for _ in range(3):
            started = time.perf_counter()
            jax.block_until_ready(function(query, candidate))
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
    return {"seconds": seconds, "ratio": seconds["ours"] / seconds["xla_whole"], "queries": 2048, "candidates": 16384}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--widths", nargs="+", type=int, choices=(1024, 2560), default=[1024, 2560])
    parser.add_argument("--operations", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        operation, name, device, width = arguments.worker
        print(json.dumps(worker(operation, name, device, int(width))))
        return
    table = sys.stderr if arguments.json else sys.stdout
    report: dict = {}
    for device in arguments.devices:
        for width in arguments.widths:
            for operation in arguments.operations:
                for name in PEERS[operation]:
                    found = run(operation, name, device, width)
                    report.setdefault(device, {}).setdefault(f"D{width}", {}).setdefault(operation, {})[name] = found
                    words = " ".join(
                        f"{key}={value:,.4g}" if isinstance(value, float) else f"{key}={value}"
                        for key, value in found.items()
                        if key != "kernels"
                    )
                    print(f"{device} D={width} {operation} {name}: {words}", file=table, flush=True)
    if "masked_logsumexp" in arguments.operations:
        report["cpu"] = {"masked_logsumexp": on_cpu()}
        print(f"cpu masked_logsumexp: {report['cpu']['masked_logsumexp']}", file=table, flush=True)
    names = [name for name in ("jax", "libtpu", "optax", "tokamax") if importlib.util.find_spec(name)]
    report["taken"] = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "by": "static schedules and HLO; seconds on CPU",
        "shapes": {"vocabulary": VOCABULARY, "tokens": TOKENS, "queries": QUERIES, "candidates": CANDIDATES},
    }
    if arguments.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
