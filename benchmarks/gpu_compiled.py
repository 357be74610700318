"""Attention compiled for GPUs without having one: ours, XLA's implementations, JAX's kernel, cuDNN and tokamax.

No time is measured here; `benchmarks/gpu_attention.py` does that on a GPU. The compilers tell the temporaries, the
registers and spills of each Triton kernel, and its tensor core instructions. They also give a lower bound on the time:
the larger of products at peak and of HBM bytes at full bandwidth. It assumes that a kernel reads its inputs once and,
for kernels that are not ours, that no product is computed twice.

A dense sequence is one text. A packed one holds nine texts of unequal lengths; implementations without support for
packed sequences get each text as a separate sequence, padded to the longest.

Needs the CUDA wheels: pip install 'pplx-jax[cuda]'. tokamax is compared if it is installed.
Usage: python benchmarks/gpu_compiled.py [--devices h100] [--lengths 512 4096 32768] [--heads 16] [--json]
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from hlo_cost import cost_of

KV_HEADS, HEAD_DIM, TOKENS = 8, 128, 32768
# Products of [L, L, E] in a forward pass, and in one with its gradients.
PRODUCTS = {
    "ours": (2, 9),
    "blockwise": (2, 8),
    "whole": (2, 6),
    "jax_mha": (2, 9),
    "cudnn": (2, 7),
    "tokamax_triton": (2, 7),
    "tokamax_mosaic": (2, 7),
}
BY_TRITON = ("ours", "jax_mha", "tokamax_triton")


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU as XLA describes it. Sources: vendors' data sheets; openxla/xla, xla/backends/gpu/target_config/specs.

    Attributes:
      name: as JAX names it.
      capability: compute capability, as the text of a protocol buffer.
      target: architecture for ptxas.
      cores: multiprocessors.
      shared_bytes: shared memory of a multiprocessor that a program may use.
      memory_bytes: memory of the device.
      bandwidth: HBM bytes per second.
      peak: bf16 FLOP/s of the tensor cores.
    """

    name: str
    capability: str
    target: str
    cores: int
    shared_bytes: int
    memory_bytes: int
    bandwidth: float
    peak: float

    def config(self) -> str:
        return f"""
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            device_description_str: "{self.name}"
            gpu_device_info {{
              cuda_compute_capability {{ {self.capability} }}
              core_count: {self.cores} fpus_per_core: 128 threads_per_warp: 32
              threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_bytes}
              shared_memory_per_core: {self.shared_bytes + 1024}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {int(self.bandwidth)} l2_cache_size: 41943040 clock_rate_ghz: 1.5
              device_memory_size: {self.memory_bytes}
            }}"""


DEVICES = {
    "h100": Device(
        "NVIDIA H100 80GB HBM3",
        "major: 9 feature_extension: ACCELERATED_FEATURES",
        "sm_90a",
        132,
        232448,
        84942979072,
        3.35e12,
        989e12,
    ),
    "a100": Device("NVIDIA A100-SXM4-80GB", "major: 8", "sm_80", 108, 166912, 84987740160, 2.04e12, 312e12),
    "rtx4090": Device(
        "NVIDIA GeForce RTX 4090", "major: 8 minor: 9", "sm_89", 128, 101376, 25393692672, 1.01e12, 165e12
    ),
}


def worker(device: Device, implementation: str, length: int, heads: int, packed: bool, backward: bool) -> dict:
    """Compiles one program, in this process."""
    import gpu_attention
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.experimental.pallas.ops.gpu.attention import mha

    from pplx_jax.kernels.attention import blockwise, reference, triton
    from pplx_jax.kernels.attention.mask_info import overlap_ranges
    from pplx_jax.kernels.attention.triton_blocks import choose_blocks

    topology = topologies.get_topology_desc(
        device.name, platform="cuda", target_config=device.config(), topology="1x1x1"
    )
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    rows = max(TOKENS // length, 1)
    lengths = tuple(int(share * length) for share in gpu_attention.SHARES) if packed else (length,)
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    ids = np.tile(np.pad(ids, (0, length - len(ids))), (rows, 1)).astype(np.int32)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def jax_mha(query, key, value, ids):  # it has no grouped queries: keys and values are repeated
        key, value = (jnp.repeat(x, heads // KV_HEADS, axis=2) for x in (key, value))
        return mha(query, key, value, ids, sm_scale=HEAD_DIM**-0.5)

    def one_text_per_sequence(attend):
        def run(query, key, value, ids):
            def with_lengths(query, key, value, lengths=None):
                return attend(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths)

            case = gpu_attention.Case(query, key, value, ids, lengths)
            return (gpu_attention.unpacked(with_lengths, case) if packed else with_lengths)(query, key, value)

        return run

    def by_tokamax(name):
        import tokamax

        return one_text_per_sequence(functools.partial(tokamax.dot_product_attention, implementation=name))

    attend = {
        "ours": lambda: triton.attention,
        "blockwise": lambda: blockwise.attention,
        "whole": lambda: reference.attention,
        "jax_mha": lambda: jax_mha,
        "cudnn": lambda: one_text_per_sequence(functools.partial(jax.nn.dot_product_attention, implementation="cudnn")),
        "tokamax_triton": lambda: by_tokamax("triton"),
        "tokamax_mosaic": lambda: by_tokamax("mosaic"),
    }[implementation]()

    def loss(*arguments):
        return attend(*arguments).astype(jnp.float32).sum()

    pairs = rows * length**2
    if packed and implementation in ("cudnn", "tokamax_triton", "tokamax_mosaic"):
        pairs = rows * len(lengths) * max(lengths) ** 2
    elif implementation == "ours":
        blocks = choose_blocks(HEAD_DIM, 2)[0]
        block_q, block_kv = blocks.block_q, blocks.block_kv
        padded = np.pad(ids, ((0, 0), (0, -length % block_q)))
        with jax.default_device(jax.devices("cpu")[0]):
            padded = jnp.asarray(padded)
            start, stop = overlap_ranges(padded, padded, block_q, block_kv, causal=False)
            pairs = int((stop - start).sum()) * block_q * block_kv
    arrays = (array(rows, length, count, HEAD_DIM) for count in (heads, KV_HEADS, KV_HEADS))
    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else attend
    with jax.default_device(topology.devices[0]):  # tokamax looks at it
        compiled = jax.jit(function).lower(*arrays, array(rows, length, dtype=jnp.int32)).compile()
    products = PRODUCTS[implementation][backward] * 2 * pairs * heads * HEAD_DIM
    cost = cost_of(
        compiled.as_text(), peak_flops=device.peak, hbm_bytes_per_second=device.bandwidth, trips=-(-length // 256)
    )
    return {
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "product_flops": products,
        "hbm_bytes": cost.hbm_bytes,
        "least_milliseconds": 1e3 * max(products / device.peak, cost.hbm_bytes / device.bandwidth),
    }


def kernels_in(folder: pathlib.Path, target: str) -> dict[str, dict]:
    """Returns what ptxas reports about each attention kernel that XLA wrote into the folder."""
    import nvidia.cuda_nvcc as toolkit

    ptxas = pathlib.Path(next(iter(toolkit.__path__))) / "bin" / "ptxas"
    found = {}
    for path in sorted(folder.glob("*.ptx")):
        text = path.read_text()
        name = re.search(r"\.entry (\w+)", text)
        if name is None or "mma" not in text:
            continue
        command = [ptxas, "-v", f"-arch={target}", path, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        found[name.group(1)] = {
            "registers": int(re.search(r"Used (\d+) registers", said).group(1)),
            "spill_bytes": int(re.search(r"(\d+) bytes spill stores", said).group(1)),
            "tensor_core_instructions": text.count("wgmma.mma_async") + text.count("mma.sync"),
        }
    return found


def measure(name: str, implementation: str, length: int, heads: int, packed: bool, backward: bool) -> dict:
    """Returns the figures of one program, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no driver
            "XLA_FLAGS": f"--xla_gpu_autotune_level=0 --xla_dump_to={folder}",
        }
        numbers = map(str, (length, heads, int(packed), int(backward)))
        words = [sys.executable, __file__, "--worker", name, implementation, *numbers]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "rror" in line or "EXHAUSTED" in line]
            return {"error": (lines or ["failed"])[-1][:200]}
        found = json.loads(done.stdout.splitlines()[-1])
        if implementation in BY_TRITON:
            found["kernels"] = kernels_in(pathlib.Path(folder), DEVICES[name].target)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 4096, 32768])
    parser.add_argument("--heads", nargs="+", type=int, choices=(16, 32), default=[16, 32])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, implementation, *numbers = arguments.worker
        length, heads, packed, backward = map(int, numbers)
        sys.argv[1:] = []  # tokamax reads the command line
        print(json.dumps(worker(DEVICES[name], implementation, length, heads, bool(packed), bool(backward))))
        return 0
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        print("gpu_compiled: no CUDA compiler here; pip install 'pplx-jax[cuda]'", file=sys.stderr)
        return 2
    table = sys.stderr if arguments.json else sys.stdout
    report: dict = {}
    names = [name for name in PRODUCTS if importlib.util.find_spec("tokamax") or not name.startswith("tokamax")]
    ways = ("dense_forward", "dense_backward", "packed_forward", "packed_backward")
    for device, length, heads in itertools.product(arguments.devices, arguments.lengths, arguments.heads):
        shape = report.setdefault(device, {}).setdefault(f"L{length}_H{heads}", {})
        for way, name in itertools.product(ways, names):
            found = measure(device, name, length, heads, way.startswith("packed"), way.endswith("backward"))
            shape.setdefault(way, {})[name] = found
            words = " ".join(f"{key}={value:.4g}" for key, value in found.items() if isinstance(value, int | float))
            words += "".join(f" {kernel}: {figures}" for kernel, figures in found.get("kernels", {}).items())
            print(f"{device} L={length} H={heads} {way} {name}: {found.get('error', words)}", file=table, flush=True)
    names = ["jax", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"] + ["tokamax"] * bool(
        importlib.util.find_spec("tokamax")
    )
    versions = {name: importlib.metadata.version(name) for name in names}
    report["taken"] = {
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "by": "compilers, without a GPU",
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
