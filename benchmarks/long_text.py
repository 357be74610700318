"""Cost of one text by its length: seconds, tokens per second, and growth of peak memory.

Each length runs in a separate process, so that peaks are separate. The second of two calls is timed; the first one
compiles. Weights are random, which does not change the cost.

Usage: python benchmarks/long_text.py [--size small] [--lengths 512 4096 32768] [--json]
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time

SIZES = {
    "small": {"width": 512, "mlp_width": 512, "layers": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 64},
    "qwen3_0p6b": {"width": 1024, "mlp_width": 3072, "layers": 28, "query_heads": 16, "kv_heads": 8, "head_dim": 128},
}


def measure(size: str, length: int) -> dict[str, float]:
    """Measures one length in this process."""
    import numpy as np

    from pplx_jax.inference.packed_encoder import PackedEncoder
    from pplx_jax.models.parameters import initial_params
    from pplx_jax.models.transformer import Qwen3Config

    config = Qwen3Config(vocab_size=32_000, dtype="float32", **SIZES[size])
    encoder = PackedEncoder(config, initial_params(config, 0), pad_id=0, separator_id=1, batch_tokens=8192, slots=64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = [np.random.default_rng(0).integers(5, config.vocab_size, length).astype(np.int32)]
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        encoder.pool(tokens, np.ones(1, np.int64))
        seconds = time.perf_counter() - started
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"length": length, "seconds": seconds, "tokens_per_second": length / seconds, "peak_growth_mib": growth}


def machine() -> dict[str, object]:
    """Describes the machine and the versions of packages."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    today = datetime.date.today().isoformat()
    return {"processor": platform.machine(), "cores": os.cpu_count(), "versions": versions, "date": today}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 32768])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.size, arguments.one)))
        return
    rows = []
    for length in arguments.lengths:
        command = [sys.executable, __file__, "--size", arguments.size, "--one", str(length)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not arguments.json:
            print("  ".join(f"{name} {value:,.2f}" for name, value in rows[-1].items()), flush=True)
    if arguments.json:
        print(json.dumps({"size": arguments.size, "machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
