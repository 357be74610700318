"""The TPU kernels and JAX's own, compared by the schedules that the TPU compiler writes: no TPU is needed.

A bundle is a VLIW instruction, one per cycle without stalls. A tile is 512 x 512 scores of one head. Each kernel is
counted
over a dense sequence: the bundles that a grid step executes, times the steps, divided by the tiles of the sequence. For
JAX's kernels, and tokamax's if it is installed, `bundles_per_tile` counts the whole kernel, as if each step initialized
and finished a block of queries; `dense_row_bundles_per_tile` counts these parts once per block (and half a percent for
what precedes them). Our kernels have separate code for dense and for packed blocks; their figure is the sum of the
parts that
run: the overhead of a step, the start and end of each block of queries, and the dense code. A packed sequence holds
  texts
of 256 tokens; `over_own_tiles` is its cost per tile of its own scores, divided by that of a dense sequence. HBM bytes
are per sequence.

Usage: python benchmarks/kernels.py [--devices v5e v5p v6e] [--lengths 4096] [--heads 16 32] [--json]
       python benchmarks/kernels.py --output benchmarks/results/kernels.json [--ours]

A shape takes minutes. With --output each is written when it is done, and the same command continues with the missing
ones; --ours measures our kernels again and keeps the figures of the others.
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import pathlib
import sys
from typing import TextIO

from kernel_programs import KV_HEADS, SLOTS, WIDTH, compile_program
from tpu_schedule import Kernel, compile_and_read

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
DEVICE_KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
TILE = 512 * 512
SPLASH_FORWARD = ((512, 2048, 512), (1024, 1024, 512))
SPLASH_BACKWARD = ((1024, 1024, 512), (1024, 1024, 1024))
FLASH = ((512, 1024, 512), (1024, 1024, 512))
TOKAMAX_FORWARD = ((512, 2048, 512, 0), (512, 2048, 512, 1), (1024, 1024, 512, 1))  # (..., scheduler)
TOKAMAX_BACKWARD = ((1024, 1024, 512, 0), (1024, 1024, 1024, 0))
FIGURES = ("bundles_per_tile", "matrix_slots_share", "spills", "vmem_bytes", "temporary_bytes")


def named(name: str, kernels: dict[str, Kernel]) -> Kernel:
    """Returns the kernel with this name; transformations of JAX may have added to it."""
    return next(kernel for found, kernel in kernels.items() if name in found)


def size(block: tuple[int, int]) -> int:
    """Bundles of a basic block."""
    return block[1] - block[0]


def ours_forward(kernel: Kernel, length: int, heads: int, device: str) -> tuple[dict, dict]:
    """Dense and packed (texts of 256 tokens) figures of our forward pass, which has some key heads per grid step."""
    from pplx_jax.kernels.attention.tiles import choose_tiles

    group, tiles = heads // KV_HEADS, choose_tiles(length, heads // KV_HEADS, device_kind=DEVICE_KINDS[device])[0]
    long = [block for block in kernel.blocks if size(block) > 120]
    at = next(place for place, block in enumerate(long) if size(block) > 1000)
    names = ("interleaved", "interleaved_full", "begin", "full", "begin_sub")
    found = dict(zip(names, long[at:], strict=False))
    step = max(long[at + len(names) :], key=size)
    # After the steps come the zeros of queries without keys, the finish, and the zeros of padding, absent here.
    found["finish"] = max((s for s in long if s[0] >= step[1]), key=lambda s: kernel.filled("exp", *s))
    overhead = kernel.bundles - kernel.entry - sum(map(size, long[at:]))
    query_tiles, key_tiles = length // tiles.block_q, length // tiles.block_kv
    pieces, subs = length // tiles.block_q_unmasked, length // tiles.block_q_masked
    dense = query_tiles * key_tiles * overhead + subs * tiles.kv_heads * size(found["finish"])
    dense += pieces * (key_tiles * tiles.kv_heads * size(found["full"]) + size(found["begin"]))
    dense /= length * length * group * tiles.kv_heads / TILE
    side, whole = found["interleaved"], found["interleaved_full"]
    idle = sum(size(s) for s in kernel.skipped_with(whole, running=side) if s not in long)
    packed = query_tiles * (overhead - idle) + subs // tiles.interleave * size(side)
    packed /= length * 256 * group * tiles.kv_heads / TILE
    return (
        {
            "bundles_per_tile": dense,
            "body_bundles_per_tile": size(found["full"]) / (tiles.block_q_unmasked * tiles.block_kv * group / TILE),
            "matrix_slots_share": kernel.matrix_share(*found["full"]),
            "spills": kernel.spills(*found["full"]),
        },
        {
            "bundles_per_tile": packed,
            "over_own_tiles": packed / dense,
            "over_dense_row": packed * 256 / length / dense,
            "bundles_per_tile_of_512_tokens": size(whole)
            / (tiles.window_size * tiles.block_q_masked * tiles.block_kv_masked * group * tiles.kv_heads / TILE),
            "matrix_slots_share": kernel.matrix_share(*side),
            "spills": kernel.spills(*side),
        },
    )


def ours_backward(kernel: Kernel, length: int, heads: int, device: str) -> tuple[dict, dict]:
    """Dense and packed figures of our backward pass."""
    from pplx_jax.kernels.attention.tiles import choose_tiles

    group, tiles = heads // KV_HEADS, choose_tiles(length, heads // KV_HEADS, device_kind=DEVICE_KINDS[device])[1]
    long = [block for block in kernel.blocks if size(block) > 120]
    at = next(place for place, block in enumerate(long) if size(block) > 2000)
    found = dict(zip(("first", "zero", "interleaved", "interleaved_full", "full"), long[at - 2 :], strict=False))
    overhead = kernel.bundles - kernel.entry - sum(map(size, long[at - 2 :]))
    side, whole = found["interleaved"], found["interleaved_full"]
    idle = sum(size(s) for s in kernel.skipped_with(whole, running=side) if s not in long)
    query_tiles, key_tiles = length // tiles.block_q, length // tiles.block_kv
    starts = key_tiles * size(found["first"])
    zeros = query_tiles * (tiles.block_q // tiles.block_q_masked // tiles.window_size)
    dense = query_tiles * key_tiles * overhead + starts + zeros * size(found["zero"])
    dense += length // tiles.block_q_unmasked * key_tiles * tiles.kv_heads * size(found["full"])
    dense /= length * length * group * tiles.kv_heads / TILE
    packed = max(query_tiles, key_tiles) * (overhead - idle) + starts
    packed += length // tiles.block_q_masked // tiles.interleave * size(side)
    packed /= length * 256 * group * tiles.kv_heads / TILE

    def figures(price: float, body: tuple[int, int]) -> dict:
        share, spills = kernel.matrix_share(*body), kernel.spills(*body)
        return {"bundles_per_tile": price, "matrix_slots_share": share, "spills": spills}

    body = size(found["full"]) / (tiles.block_q_unmasked * tiles.block_kv * group / TILE)
    more = {
        "over_own_tiles": packed / dense,
        "over_dense_row": packed * 256 / length / dense,
        "bundles_per_tile_of_512_tokens": size(whole)
        / (tiles.window_size * tiles.block_q_masked * tiles.block_kv_masked * group * tiles.kv_heads / TILE),
    }
    return (
        figures(dense, found["full"]) | {"body_bundles_per_tile": body},
        figures(packed, side) | more,
    )


def theirs(kernels: list[Kernel], tiles: float, steps: int) -> dict:
    """Figures of the kernels of JAX or tokamax that together make one pass.

    Args:
      kernels: their schedules.
      tiles: tiles per grid step.
      steps: steps of a dense sequence between the start and the end of a block.
    """
    bundles = sum(kernel.bundles for kernel in kernels)
    ends = sum(sum(map(size, kernel.ends())) for kernel in kernels)
    return {
        "bundles_per_tile": bundles / tiles,
        "dense_row_bundles_per_tile": (bundles - ends + ends / steps) / tiles,
        "matrix_slots_share": sum(k.matrix_share() * k.bundles for k in kernels) / sum(k.bundles for k in kernels),
        "spills": sum(kernel.spills() for kernel in kernels),
    }


def measure(device: str, length: int, heads: int, *, ours_alone: bool) -> dict:
    """Returns the figures of all kernels on one device at one shape, or of ours only."""

    def run(name, words, *sizes):
        """Returns the figures of a program, with the largest VMEM of the kernels with these words, and its kernels."""
        shape = map(str, (length, heads, *sizes))
        memory, kernels = compile_and_read([__file__, "--worker", name, TOPOLOGIES[device], *shape])
        taken = [size for found, size in memory["vmem_bytes"].items() if any(word in found for word in words)]
        return memory | {"vmem_bytes": max(taken, default=None)}, kernels

    def attempt(function):
        try:
            return function()
        except RuntimeError as error:
            return {"error": str(error)[:200]}

    result: dict[str, dict] = {"attention_forward": {}, "attention_backward": {}, "attention_packed": {}}
    memory, kernels = run("ours_forward", ("attention_forward",))
    dense, packed = ours_forward(named("attention_forward", kernels), length, heads, device)
    result["attention_forward"]["ours"], result["attention_packed"]["ours"] = dense | memory, packed | memory
    memory, kernels = run("ours_backward", ("attention_backward",))
    dense, packed = ours_backward(named("attention_backward", kernels), length, heads, device)
    result["attention_backward"]["ours"], result["attention_packed"]["ours_backward"] = dense | memory, packed | memory

    memory, kernels = run("pool", ("",))
    kernel = max(kernels.values(), key=lambda kernel: kernel.bundles)
    once = length * WIDTH * 2 + length * 4 + SLOTS * WIDTH
    result["segment_pool"] = {
        "ours": {
            "matrix_slots_share": kernel.matrix_share(),
            "spills": kernel.spills(),
            "moved_over_once": (length * WIDTH * 2 + length * 4 + 128 * (WIDTH + 4 * 128)) / once,
        }
        | memory,
    }
    if ours_alone:
        return with_all_figures(result)
    result["segment_pool"]["xla"] = run("pool_xla", ("",))[0]

    def splash(name, sizes, words):
        memory, kernels = run(name, words, *sizes)
        chosen = [kernel for found, kernel in kernels.items() if any(word in found for word in words)]
        steps = length // sizes[1 if name.endswith("forward") else 0]
        return theirs(chosen, sizes[0] * sizes[1] / TILE, steps) | memory | {"tiles": sizes}

    forward, backward = "attention_forward", "attention_backward"
    for operation, entry, name, all_sizes, words in (
        (forward, "splash", "splash_forward", SPLASH_FORWARD, ("splash_mha_fwd",)),
        (backward, "splash_fused", "splash_fused", SPLASH_BACKWARD, ("splash_mha_dkv",)),
        (backward, "splash_unfused", "splash_unfused", SPLASH_BACKWARD, ("splash_mha_dkv", "splash_mha_dq")),
        (forward, "flash", "flash_forward", FLASH, ("flash_attention",)),
        (forward, "tokamax", "tokamax_forward", TOKAMAX_FORWARD, ("splash_mha_fwd",)),
        (backward, "tokamax", "tokamax_backward", TOKAMAX_BACKWARD, ("splash_mha_dkv",)),
    ):
        if entry == "tokamax" and importlib.util.find_spec("tokamax") is None:
            result[operation][entry] = {"error": "tokamax is not installed"}
            continue
        tried = [attempt(functools.partial(splash, name, sizes, words)) for sizes in all_sizes]
        result[operation][entry] = cheapest(tried)
    result[backward]["splash"] = cheapest([result[backward][name] for name in ("splash_fused", "splash_unfused")])
    # Splash skips no block for segments: a packed sequence costs as much as a dense one.
    dense_price = result["attention_forward"]["splash"].get("bundles_per_tile")
    if dense_price:
        result["attention_packed"]["splash"] = {"bundles_per_tile": dense_price * length / 256}
    return with_all_figures(result)


def cheapest(tried: list[dict]) -> dict:
    """Returns the figures with the fewest bundles; an error only if there are no figures."""
    return min(tried, key=lambda found: found.get("dense_row_bundles_per_tile", math.inf))


def with_all_figures(result: dict[str, dict]) -> dict[str, dict]:
    """Adds the missing ones of `FIGURES` to each kernel, as None."""
    return {
        operation: {name: dict.fromkeys(FIGURES) | figures for name, figures in kernels.items()}
        for operation, kernels in result.items()
    }


def show(device: str, length: int, heads: int, found: dict, table: TextIO) -> None:
    """Prints one line per kernel."""
    for operation, kernels in found.items():
        for kernel, figures in kernels.items():
            words = " ".join(
                f"{name}={value:,.3g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in figures.items()
            )
            print(f"{device} L={length} H={heads} {operation} {kernel}: {words}", file=table, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 32768])
    parser.add_argument("--heads", nargs="+", type=int, choices=(16, 32), default=[16, 32])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    parser.add_argument("--output", type=pathlib.Path, help="file to which each shape is written when it is done")
    parser.add_argument("--ours", action="store_true", help="measure our kernels only, and again if --output has them")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, topology, *numbers = arguments.worker
        print(json.dumps(compile_program(name, topology, *map(int, numbers))))
        return
    output = arguments.output
    report: dict = json.loads(output.read_text(encoding="utf-8")) if output and output.exists() else {}
    names = [name for name in ("jax", "libtpu", "tokamax") if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in names}
    for length, heads, device in itertools.product(arguments.lengths, arguments.heads, arguments.devices):
        shapes, shape = report.setdefault(device, {}).setdefault("shapes", {}), f"L{length}_H{heads}"
        if shape in shapes and not arguments.ours:
            continue
        found = measure(device, length, heads, ours_alone=arguments.ours)
        for operation, kernels in found.items():
            shapes.setdefault(shape, {}).setdefault(operation, {}).update(kernels)
        report[device] |= next(iter(shapes.values()))  # the first shape represents the device
        show(device, length, heads, found, sys.stderr if arguments.json else sys.stdout)
        taken = {"date": datetime.date.today().isoformat(), "versions": versions, "by": "static schedules"}
        report["taken"] = {**report.get("taken", {}), "ours": taken} if arguments.ours else taken
        if output:
            output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
