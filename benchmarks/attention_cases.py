"""What the benchmarks of attention share: inputs, the comparison with the reference, times, and the loop over cases."""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.kernels.attention import reference

KV_HEADS, HEAD_DIM = 8, 128
# Text lengths of a packed sequence, as shares of it.
SHARES = (0.25, 0.1875, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625, 0.03125)
TOLERANCE = 3e-2  # of the largest entry: what bfloat16 explains
Arrays = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement's inputs.

    Attributes:
      query, key, value: [B, L, heads, E].
      segment_ids: [B, L] int32, the same in each sequence.
      lengths: of the texts of a sequence.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    segment_ids: jax.Array
    lengths: tuple[int, ...]

    def flops(self, *, backward: bool) -> float:
        """Operations of both products over the pairs of tokens that attend to each other; the backward pass has twice
        those of the forward pass, and both are counted."""
        rows, _, heads, head_dim = self.query.shape
        pairs = rows * sum(length**2 for length in self.lengths)
        return 4.0 * pairs * heads * head_dim * (3 if backward else 1)


def make_case(rows: int, length: int, heads: int, *, packed: bool, dtype=jnp.bfloat16, seed: int = 0) -> Case:
    """Returns random inputs; a packed sequence ends in padding, a dense one is one text."""
    generator = np.random.default_rng(seed)
    lengths = tuple(int(share * length) for share in SHARES) if packed else (length,)
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    ids = np.pad(ids, (0, length - len(ids))).astype(np.int32)
    arrays = (
        jnp.asarray(generator.standard_normal((rows, length, count, HEAD_DIM), np.float32), dtype)
        for count in (heads, KV_HEADS, KV_HEADS)
    )
    return Case(*arrays, jnp.asarray(np.tile(ids, (rows, 1))), lengths)


def off(found: Arrays, expected: Arrays) -> float:
    """Largest difference, relative to the largest entry of each array."""
    return max(
        float(jnp.abs(one.astype(jnp.float32) - other.astype(jnp.float32)).max() / jnp.abs(other).max())
        for one, other in zip(found, expected, strict=True)
    )


def one_pass(run: Callable[..., jax.Array], *, backward: bool) -> Callable[..., Arrays]:
    """Returns the jitted function of query, key and value that is measured: `run`, or its three gradients."""

    def forward(*arrays) -> Arrays:
        return (run(*arrays),)

    def loss(*arrays):
        return jnp.sum(jnp.square(run(*arrays).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if backward else forward)


@functools.cache
def expected_of(rows: int, length: int, heads: int, packed: bool, backward: bool) -> tuple[Case, Arrays]:
    """A small case in bfloat16, and the result of the reference in float32."""
    case = make_case(rows, length, heads, packed=packed, seed=1)
    run = one_pass(lambda *arrays: reference.attention(*arrays, case.segment_ids), backward=backward)
    return case, run(*(x.astype(jnp.float32) for x in (case.query, case.key, case.value)))


def check(
    candidates: Callable[[Case], dict], name: str, heads: int, *, packed: bool, backward: bool, length: int = 256
) -> float:
    """Returns how far a candidate is from the reference; raises ValueError if bfloat16 does not explain it."""
    case, expected = expected_of(1, length, heads, packed, backward)
    found = one_pass(candidates(case)[name], backward=backward)(case.query, case.key, case.value)
    if not (difference := off(found, expected)) < TOLERANCE:
        raise ValueError(f"{name} differs from the reference by {difference:.2g} of its largest entry")
    return difference


def seconds_of(run: Callable[[], object], wait: Callable[[object], object], repeats: int) -> float:
    """Returns the median seconds of a call, without the first two, which compile and warm up."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def short(error: Exception) -> str:
    """The first line of an error, for a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags that the benchmarks of attention share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 512, 32768], help="most interesting first")
    parser.add_argument("--heads", nargs="+", type=int, choices=(16, 32), default=[16, 32], help="0.6B has 16, 4B 32")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of a batch (default 32768)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after this time (default 9)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    return parser


def measure_all(arguments: argparse.Namespace, measure: Callable[..., dict], packages: Sequence[str]) -> dict:
    """Measures every case that begins in time, prints a line for each, and returns the report.

    Args:
      arguments: of `parser_of`.
      measure: (length, heads, packed=, backward=) -> figures by name, each a dictionary by candidate.
      packages: whose versions the report has.
    """
    table, started = sys.stderr if arguments.json else sys.stdout, time.monotonic()
    report: dict = {"left_out": []}
    for heads, length, packed, backward in itertools.product(
        arguments.heads, arguments.lengths, (False, True), (False, True)
    ):
        shape, name = (
            f"L{length}_H{heads}",
            f"{'packed' if packed else 'dense'}_{'backward' if backward else 'forward'}",
        )
        if time.monotonic() - started > 60 * arguments.minutes:
            report["left_out"].append(f"{shape} {name}")
            continue
        found = measure(length, heads, packed=packed, backward=backward)
        report.setdefault(shape, {})[name] = found
        for figure, values in found.items():
            words = " ".join(
                f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
            )
            print(f"{shape} {name} {figure}: {words}", file=table, flush=True)
    if report["left_out"]:
        print(f"left out after {arguments.minutes} minutes: {', '.join(report['left_out'])}", file=table)
    report["taken"] = {
        "date": datetime.date.today().isoformat(),
        "device": getattr(arguments, "compile", None) or jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
    return report


def ratios(seconds: dict[str, float | str]) -> dict[str, float]:
    """Returns the time of each candidate that ran, over that of the fastest."""
    timed = {name: value for name, value in seconds.items() if isinstance(value, float)}
    fastest = min(timed.values(), default=0.0)
    return {name: value / fastest for name, value in timed.items()}
