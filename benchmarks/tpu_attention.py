"""Attention on one TPU chip: our kernels, JAX's splash, tokamax's (if installed) and XLA's, dense and packed.

Each is compared with the reference in float32 before it is timed. "share of peak" is that of the chip's bfloat16 rate,
over the pairs of tokens that attend to each other: splash and tokamax also compute the other pairs of a packed
sequence. The backward cases have both passes. It ends within ten minutes: no case begins after `--minutes`, and those
that did not begin are listed.

Without a TPU, `--compile v5e:2x2` compiles every case for that topology and shows the seconds of the compiler and the
temporary memory; `--interpret` runs the kernels on this machine, slowly, to try the script.

If a kernel differs or is slow on your chip, please report the output of `--json`, and see docs/kernels.md for how to
take another one.

Usage: python benchmarks/tpu_attention.py [--lengths 4096 512] [--heads 16] [--implementations pallas splash] [--json]
"""

import argparse
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable

import jax
from attention_cases import Case, check, make_case, measure_all, one_pass, parser_of, ratios, seconds_of, short
from jax.experimental import topologies

from pplx_jax.kernels.attention import attention, blockwise, pallas, splash
from pplx_jax.models.model_flops import peak_flops
from pplx_jax.plan.libtpu import ENVIRONMENT

IMPLEMENTATIONS = ("pallas", "splash", "tokamax", "blockwise")
INTERPRETED = {
    "pallas": functools.partial(pallas.attention, interpret=True),
    "splash": functools.partial(splash.attention, interpret=True),
    "tokamax": functools.partial(splash.attention, library="tokamax", interpret=True),
    "blockwise": blockwise.attention,
}


def candidates(case: Case, *, interpret: bool = False) -> dict[str, Callable[..., jax.Array]]:
    """Functions (query, key, value) -> [B, L, H, E] by name."""

    def of(name: str) -> Callable[..., jax.Array]:
        run = INTERPRETED[name] if interpret else functools.partial(attention, implementation=name)
        return lambda *arrays: run(*arrays, case.segment_ids)

    return {name: of(name) for name in IMPLEMENTATIONS}


def measure(
    length: int,
    heads: int,
    *,
    packed: bool,
    backward: bool,
    tokens: int,
    repeats: int,
    names: list[str],
    interpret: bool,
) -> dict[str, dict]:
    """Returns the difference from the reference of each implementation, its seconds or its error, ratios and shares."""
    made = functools.partial(candidates, interpret=interpret)
    case = make_case(max(tokens // length, 1), length, heads, packed=packed)
    peak = peak_flops()
    seconds: dict[str, float | str] = {}
    differences, shares = {}, {}
    for name in names:
        try:
            # Long enough for several blocks of keys and queries.
            differences[name] = check(made, name, heads, packed=packed, backward=backward, length=min(length, 2048))
            call = functools.partial(one_pass(made(case)[name], backward=backward), case.query, case.key, case.value)
            seconds[name] = took = seconds_of(call, jax.block_until_ready, repeats)
            if peak:
                shares[name] = case.flops(backward=backward) / took / peak
        except Exception as error:  # the table shows the error of one that cannot run
            seconds[name] = short(error)
    return {"differences": differences, "seconds": seconds, "ratios": ratios(seconds), "shares_of_peak": shares}


def compile_case(
    length: int, heads: int, *, packed: bool, backward: bool, tokens: int, names: list[str], device: jax.Device
) -> dict[str, dict]:
    """Compiles a case for a device that is not here. Returns seconds of the compiler and bytes of temporaries."""
    case = make_case(max(tokens // length, 1), length, heads, packed=packed)
    mesh = jax.sharding.Mesh([device], ("data",))
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement) for x in (case.query, case.key, case.value)]
    seconds: dict[str, float | str] = {}
    temporaries = {}
    for name in names:
        started = time.monotonic()
        try:
            with jax.set_mesh(mesh):  # tells the kernels the device
                compiled = one_pass(candidates(case)[name], backward=backward).lower(*shapes).compile()
            seconds[name] = time.monotonic() - started
            temporaries[name] = compiled.memory_analysis().temp_size_in_bytes
        except Exception as error:
            seconds[name] = short(error)
    return {"compile_seconds": seconds, "temporary_bytes": temporaries}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--compile", metavar="TOPOLOGY", help="compile for a topology, such as v5e:2x2, and run nothing")
    where.add_argument("--interpret", action="store_true", help="run the kernels without a TPU; give small sizes")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    names = [name for name in arguments.implementations if name != "tokamax" or importlib.util.find_spec("tokamax")]
    if names != arguments.implementations:
        print("tpu_attention: tokamax is not installed, so it is left out", file=sys.stderr)
    common = {"tokens": arguments.tokens, "names": names}
    if arguments.compile:
        os.environ.update(ENVIRONMENT)
        jax.config.update("jax_platforms", "cpu")
        device = topologies.get_topology_desc(platform="tpu", topology_name=arguments.compile).devices[0]
        run = functools.partial(compile_case, device=device, **common)
    elif arguments.interpret or jax.default_backend() == "tpu":
        run = functools.partial(measure, repeats=arguments.repeats, interpret=arguments.interpret, **common)
    else:
        print(
            f"tpu_attention: this is {jax.default_backend()}, it needs a TPU; without one give --compile v5e:2x2, or "
            "--interpret with small sizes",
            file=sys.stderr,
        )
        return 2
    report = measure_all(arguments, run, ("jax", "jaxlib", "libtpu", "tokamax"))
    cases = [case for shape, cases in report.items() if shape.startswith("L") for case in cases.values()]
    failed = [value for case in cases for value in (case.get("seconds") or case["compile_seconds"]).values()]
    return 1 if any(isinstance(value, str) for value in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
