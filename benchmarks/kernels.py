"""The TPU kernels beside JAX's own, by the schedules that the TPU's compilers write: no TPU is needed.

Bundles are VLIW instructions, one a cycle where nothing stalls. A tile is 512 x 512 scores of one head. Every kernel is
counted over a dense row: what a grid step executes, times its steps, over the row's tiles. Of JAX's kernels, and of
tokamax's where that is installed, `bundles_per_tile` is the whole kernel, as if each step began and ended a tile of
queries; `dense_row_bundles_per_tile` has those parts once a row of steps (and half a percent for what precedes them).
Ours has bodies for dense and for packed tiles, and its is the sum of those that run: the step's overhead, beginning and
end of each tile of queries, and the dense body. A packed row is 256-token texts; `over_own_tiles` is its price for a
tile over that of a dense row. Bytes of HBM are of one row of the batch.

Usage: python benchmarks/kernels.py [--devices v5e v5p v6e] [--lengths 4096] [--heads 16 32] [--json]
       python benchmarks/kernels.py --output benchmarks/results/kernels.json [--ours]

A shape takes minutes. With --output each is written as soon as it is there, and the same command goes on with those
that are not; --ours takes our kernels anew and leaves what the file has of others.
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
import re
import sys
from typing import TextIO

from tpu_schedule import Kernel, compile_and_read

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
DEVICE_KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
KV_HEADS, HEAD_DIM, WIDTH, SLOTS = 8, 128, 1024, 64
TILE = 512 * 512
SPLASH_FORWARD = ((512, 2048, 512), (1024, 1024, 512))
SPLASH_BACKWARD = ((1024, 1024, 512), (1024, 1024, 1024))
FLASH = ((512, 1024, 512), (1024, 1024, 512))
TOKAMAX_FORWARD = ((512, 2048, 512, 0), (512, 2048, 512, 1), (1024, 1024, 512, 1))  # the last: its own scheduler
TOKAMAX_BACKWARD = ((1024, 1024, 512, 0), (1024, 1024, 1024, 0))
# Of a kernel's call in the compiled program, its name and what the compiler gave it of the core's fast memory.
FAST_MEMORY = re.compile(
    r'%([\w.\-]+) = [^\n]*"tpu_custom_call".*?'
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"',
    re.DOTALL,
)
FIGURES = ("bundles_per_tile", "matrix_slots_share", "spills", "vmem_bytes", "temporary_bytes")


def worker(name: str, topology: str, length: int, heads: int, *sizes: int) -> dict:
    """Compiles one program, in this process."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    mesh = jax.sharding.Mesh([device], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = max(1, 32768 // length)  # too much for XLA to keep the arguments in fast memory

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    ids = array(1, length, dtype=jnp.int32)
    if name.startswith("pool"):
        from pplx_jax.kernels.segment_pool import reference, segment_pool

        pool = segment_pool if name == "pool" else reference.segment_pool

        def function(hidden, ids):
            return pool(hidden, ids, SLOTS, output="int8")[0]

        compiled = jax.jit(function).lower(array(1, length, WIDTH), ids).compile()
    elif name.startswith("ours"):
        from pplx_jax.kernels.attention import attention

        def function(query, key, value, ids):
            return attention(query, key, value, ids).astype(jnp.float32).sum()

        function = jax.grad(function, argnums=(0, 1, 2)) if name == "ours_backward" else attention
        arrays = (array(rows, length, count, HEAD_DIM) for count in (heads, KV_HEADS, KV_HEADS))
        with jax.set_mesh(mesh):  # by which a kernel knows its device
            compiled = jax.jit(function).lower(*arrays, array(rows, length, dtype=jnp.int32)).compile()
    elif name.startswith("splash"):
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        query, key, compute = sizes
        fused = name == "splash_fused"
        blocks = {"block_q": 512, "block_kv": 2048, "block_kv_compute": 512}
        if name == "splash_forward":
            blocks = {"block_q": query, "block_kv": key, "block_kv_compute": compute}
        else:
            blocks |= {"block_q_dkv": query, "block_kv_dkv": key, "block_kv_dkv_compute": compute}
            blocks |= {} if fused else {"block_q_dq": query, "block_kv_dq": key}
        run = splash.make_splash_mha_single_device(
            masks.MultiHeadMask([masks.FullMask((length, length))] * heads),
            block_sizes=splash.BlockSizes(**blocks, use_fused_bwd_kernel=fused),
        )

        def attend(query, key, value, ids):
            return run(query, key, value, segment_ids=splash.SegmentIds(ids[0], ids[0]))

        def loss(*arguments):
            return attend(*arguments).astype(jnp.float32).sum()

        function = attend if name == "splash_forward" else jax.grad(loss, argnums=(0, 1, 2))
        arrays = (array(count, length, HEAD_DIM) for count in (heads, KV_HEADS, KV_HEADS))
        compiled = jax.jit(function).lower(*arrays, ids).compile()
    elif name.startswith("tokamax"):
        sys.argv[1:] = []  # it reads the command line
        from tokamax._src.ops.experimental.tpu.splash_attention import base, splash_attention_mask
        from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as splash

        query, key, compute, scheduler = sizes
        blocks = {"block_q": 512, "block_kv": 2048, "block_kv_compute": 512}
        if name == "tokamax_forward":
            blocks = {"block_q": query, "block_kv": key, "block_kv_compute": compute}
        else:
            blocks |= {"block_q_dkv": query, "block_kv_dkv": key, "block_kv_dkv_compute": compute}
        run = splash.make_splash_mha_single_device(
            splash_attention_mask.FullMask((length, length)),
            config=splash.SplashConfig(**blocks, use_experimental_scheduler=bool(scheduler)),
        )

        def attend(query, key, value, ids):
            return run(query, key, value, base.SegmentIds(ids[0], ids[0]))

        def loss(*arguments):
            return attend(*arguments).astype(jnp.float32).sum()

        function = attend if name == "tokamax_forward" else jax.grad(loss, argnums=(0, 1, 2))
        arrays = (array(count, length, HEAD_DIM) for count in (heads, KV_HEADS, KV_HEADS))
        with jax.default_device(device):  # it asks what that is
            compiled = jax.jit(function).lower(*arrays, ids).compile()
    else:
        from jax.experimental.pallas.ops.tpu import flash_attention as flash

        def attend(query, key, value, ids):  # it knows no groups: keys and values are repeated
            key, value = (jnp.repeat(x, heads // KV_HEADS, axis=1) for x in (key, value))
            blocks = flash.BlockSizes(block_q=sizes[0], block_k_major=sizes[1], block_k=sizes[2], block_b=1)
            return flash.flash_attention(query, key, value, segment_ids=flash.SegmentIds(ids, ids), block_sizes=blocks)

        arrays = (array(1, count, length, HEAD_DIM) for count in (heads, KV_HEADS, KV_HEADS))
        compiled = jax.jit(attend).lower(*arrays, ids).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    rows = rows if name.startswith("ours") else 1
    return {
        "vmem_bytes": {kernel: int(size) for kernel, size in FAST_MEMORY.findall(compiled.as_text())},
        "temporary_bytes": memory.temp_size_in_bytes // rows,
        "hbm_bytes": cost.get("bytes accessed", 0.0) / rows,
    }


def named(name: str, kernels: dict[str, Kernel]) -> Kernel:
    """The kernel called so, whatever stands about its name of the transformations that made it."""
    return next(kernel for found, kernel in kernels.items() if name in found)


def size(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]


def ours_forward(kernel: Kernel, length: int, heads: int, device: str) -> tuple[dict, dict]:
    """Dense and packed (texts of 256 tokens) figures of our forward pass, which runs for some key heads at a time."""
    from pplx_jax.kernels.attention.tiles import choose_tiles

    group, tiles = heads // KV_HEADS, choose_tiles(length, heads // KV_HEADS, device_kind=DEVICE_KINDS[device])[0]
    long = [stretch for stretch in kernel.stretches if size(stretch) > 120]
    at = next(place for place, stretch in enumerate(long) if size(stretch) > 1000)
    names = ("side_by_side", "side_by_side_whole_steps", "begin", "full", "begin_sub")
    found = dict(zip(names, long[at:], strict=False))
    step = max(long[at + len(names) :], key=size)
    # After the steps: zeros where nothing is met, the finish, and zeros of padding, of which these rows have none.
    found["finish"] = max((s for s in long if s[0] >= step[1]), key=lambda s: kernel.filled("exp", *s))
    overhead = kernel.bundles - kernel.entry - sum(map(size, long[at:]))
    query_tiles, key_tiles = length // tiles.block_q, length // tiles.block_kv
    pieces, subs = length // tiles.block_q_unmasked, length // tiles.block_q_masked
    dense = query_tiles * key_tiles * overhead + subs * tiles.kv_heads * size(found["finish"])
    dense += pieces * (key_tiles * tiles.kv_heads * size(found["full"]) + size(found["begin"]))
    dense /= length * length * group * tiles.kv_heads / TILE
    side, whole = found["side_by_side"], found["side_by_side_whole_steps"]
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
    long = [stretch for stretch in kernel.stretches if size(stretch) > 120]
    at = next(place for place, stretch in enumerate(long) if size(stretch) > 2000)
    found = dict(
        zip(("first", "zero", "side_by_side", "side_by_side_whole_steps", "full"), long[at - 2 :], strict=False)
    )
    overhead = kernel.bundles - kernel.entry - sum(map(size, long[at - 2 :]))
    side, whole = found["side_by_side"], found["side_by_side_whole_steps"]
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
    """Figures of JAX's or tokamax's kernels that together do a pass.

    A grid step is of so many tiles; of a dense row, `steps` follow each other between a beginning and an end.
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
    """All kernels on one device at one shape, or ours alone."""

    def run(name, words, *sizes):
        """A program's figures, of fast memory that of the kernel called so that takes most, and its kernels."""
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
    # Splash skips nothing for segments: a packed row costs it the dense price.
    dense_price = result["attention_forward"]["splash"].get("bundles_per_tile")
    if dense_price:
        result["attention_packed"]["splash"] = {"bundles_per_tile": dense_price * length / 256}
    return with_all_figures(result)


def cheapest(tried: list[dict]) -> dict:
    """Of figures or errors, those of the fewest bundles."""
    return min(tried, key=lambda found: found.get("dense_row_bundles_per_tile", math.inf))


def with_all_figures(result: dict[str, dict]) -> dict[str, dict]:
    """Every kernel with all of `FIGURES`, None where there is no such figure."""
    return {
        operation: {name: dict.fromkeys(FIGURES) | figures for name, figures in kernels.items()}
        for operation, kernels in result.items()
    }


def show(device: str, length: int, heads: int, found: dict, table: TextIO) -> None:
    """A line a kernel."""
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
    parser.add_argument("--output", type=pathlib.Path, help="where each shape is written as soon as it is there")
    parser.add_argument("--ours", action="store_true", help="our kernels alone, also where --output has them")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, topology, *numbers = arguments.worker
        print(json.dumps(worker(name, topology, *map(int, numbers))))
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
        report[device] |= next(iter(shapes.values()))  # the first shape stands for the device
        show(device, length, heads, found, sys.stderr if arguments.json else sys.stdout)
        taken = {"date": datetime.date.today().isoformat(), "versions": versions, "by": "static schedules"}
        report["taken"] = {**report.get("taken", {}), "ours": taken} if arguments.ours else taken
        if output:
            output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
