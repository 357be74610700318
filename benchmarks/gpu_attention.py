"""Attention on a GPU: the implementations that run there, and PyTorch's, dense and packed, forward and backward.

Each candidate is compared with the reference before it is timed. A packed sequence holds texts of unequal lengths. A
candidate without support for packed sequences gets each text as a separate sequence, padded to the longest, and its
time includes moving the texts. Ratios are of the median time to that of the fastest candidate. Needs a CUDA device:
without one it exits with code 2.

Usage: python benchmarks/gpu_attention.py [--lengths 4096 32768] [--heads 16 32] [--repeats 20] [--json]
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.kernels.attention import attention, blockwise, reference

KV_HEADS, HEAD_DIM = 8, 128
# Text lengths of a packed sequence, as shares of it.
SHARES = (0.25, 0.1875, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625, 0.03125)
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


def make_case(rows: int, length: int, heads: int, *, packed: bool, dtype=jnp.bfloat16, seed: int = 0) -> Case:
    """Returns random inputs; a packed sequence ends in padding, a dense one is one text."""
    generator = np.random.default_rng(seed)
    lengths = tuple(int(share * length) for share in SHARES) if packed else (length,)
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    ids = np.pad(ids, (0, length - len(ids))).astype(np.int32)
    arrays = (
        jnp.asarray(generator.normal(size=(rows, length, count, HEAD_DIM)), dtype)
        for count in (heads, KV_HEADS, KV_HEADS)
    )
    return Case(*arrays, jnp.asarray(np.tile(ids, (rows, 1))), lengths)


def unpacked(function: Callable[..., jax.Array], case: Case) -> Callable[..., jax.Array]:
    """Makes `function(query, key, value, lengths)`, for one text per sequence, take packed sequences."""
    rows, length = case.segment_ids.shape
    longest, starts = max(case.lengths), np.cumsum([0, *case.lengths[:-1]])
    offsets = np.arange(longest)
    # Places of each text's tokens in its sequence; those after its end point past the sequence.
    places = np.stack(
        [np.where(offsets < n, start + offsets, length) for start, n in zip(starts, case.lengths, strict=True)]
    )
    lengths = jnp.asarray(np.tile(case.lengths, rows), jnp.int32)

    def run(query, key, value):
        def apart(x):
            parts = x.at[:, places].get(mode="fill", fill_value=0)
            return parts.reshape(rows * len(places), longest, *x.shape[2:])

        mixed = function(apart(query), apart(key), apart(value), lengths).reshape(rows, len(places), longest, -1)
        found = jnp.zeros((rows, length, mixed.shape[-1]), mixed.dtype).at[:, places].set(mixed, mode="drop")
        return found.reshape(query.shape)

    return run


def _cudnn(query, key, value, lengths=None):
    return jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _tokamax(query, key, value, lengths=None):
    import tokamax

    return tokamax.dot_product_attention(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths)


def jax_candidates(case: Case) -> dict[str, Callable[..., jax.Array]]:
    """Functions (query, key, value) -> [B, L, H, E] by name; those that run on any device first."""
    ids = case.segment_ids
    dense = len(case.lengths) == 1
    found = {
        "face": lambda *arrays: attention(*arrays, ids),
        "blockwise": lambda *arrays: blockwise.attention(*arrays, ids),
        "cudnn": _cudnn if dense else unpacked(_cudnn, case),
    }
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = _tokamax if dense else unpacked(_tokamax, case)
    return found


def off(found: Arrays, expected: Arrays) -> float:
    """Largest difference, relative to the largest entry of each array."""
    return max(
        float(jnp.abs(one.astype(jnp.float32) - other.astype(jnp.float32)).max() / jnp.abs(other).max())
        for one, other in zip(found, expected, strict=True)
    )


def _pass(run: Callable[..., jax.Array], *, backward: bool) -> Callable[..., Arrays]:
    def forward(*arrays) -> Arrays:
        return (run(*arrays),)

    def loss(*arrays):
        return jnp.sum(jnp.square(run(*arrays).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if backward else forward)


@functools.cache
def expected_of(rows: int, length: int, heads: int, packed: bool, backward: bool) -> tuple[Case, Arrays]:
    """A small case in bfloat16, and the result of the reference in float32."""
    case = make_case(rows, length, heads, packed=packed, seed=1)
    run = _pass(lambda *arrays: reference.attention(*arrays, case.segment_ids), backward=backward)
    return case, run(*(x.astype(jnp.float32) for x in (case.query, case.key, case.value)))


def check(candidates: Callable[[Case], dict], name: str, heads: int, *, packed: bool, backward: bool) -> None:
    """Raises ValueError if a candidate differs from the reference by more than bfloat16 explains."""
    case, expected = expected_of(1, 256, heads, packed, backward)
    found = _pass(candidates(case)[name], backward=backward)(case.query, case.key, case.value)
    if not (difference := off(found, expected)) < 3e-2:
        raise ValueError(f"{name} differs from the reference by {difference:.2g} of its largest entry")


def seconds_of(run: Callable[[], object], wait: Callable[[object], object], repeats: int) -> float:
    """Returns the median seconds of a call, without the first two, which compile and warm up."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def torch_seconds(case: Case, *, backward: bool, repeats: int) -> dict[str, float | str]:
    """PyTorch's attention on the same inputs: scaled_dot_product_attention dense, FlexAttention packed."""
    if importlib.util.find_spec("torch") is None:
        return {"torch": "torch is not installed"}
    import torch

    if not torch.cuda.is_available():
        return {"torch": "torch has no CUDA"}
    arrays = [
        torch.tensor(np.asarray(x.astype(jnp.float32)), dtype=torch.bfloat16, device="cuda")
        .transpose(1, 2)
        .contiguous()
        .requires_grad_(backward)
        for x in (case.query, case.key, case.value)
    ]
    if len(case.lengths) == 1:
        name, attend = "torch_sdpa", torch.nn.functional.scaled_dot_product_attention
        options = {"enable_gqa": True}
    else:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        ids = torch.tensor(np.asarray(case.segment_ids[0]), device="cuda")
        length = ids.shape[0]

        def same(batch, head, query, key):
            return (ids[query] == ids[key]) & (ids[query] > 0)

        name, attend = "torch_flex", torch.compile(flex_attention)
        options = {"block_mask": create_block_mask(same, None, None, length, length), "enable_gqa": True}

    def run():
        found = attend(*arrays, **options)
        return torch.autograd.grad(found.float().square().sum(), arrays) if backward else found

    exact = reference.attention(*(x[:1] for x in (case.query, case.key, case.value)), case.segment_ids[:1])
    with torch.no_grad():
        mixed = attend(*arrays, **options).transpose(1, 2)[:1].float().cpu().numpy()
    mixed = np.where(np.asarray(case.segment_ids[:1, :, None, None]) > 0, mixed, 0)
    if not off((jnp.asarray(mixed),), (exact,)) < 3e-2:
        raise ValueError(f"{name} differs from the reference")
    return {name: seconds_of(run, lambda _: torch.cuda.synchronize(), repeats)}


def measure(length: int, heads: int, *, packed: bool, backward: bool, tokens: int, repeats: int) -> dict:
    """Returns the seconds of each candidate, or its error, and ratios to the fastest."""
    case = make_case(max(tokens // length, 1), length, heads, packed=packed)
    seconds: dict[str, float | str] = {}
    for name, run in jax_candidates(case).items():
        try:
            check(jax_candidates, name, heads, packed=packed, backward=backward)
            timed = _pass(run, backward=backward)
            call = functools.partial(timed, case.query, case.key, case.value)
            seconds[name] = seconds_of(call, jax.block_until_ready, repeats)
        except Exception as error:  # the table shows the error of a candidate that cannot run
            seconds[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    try:
        if length <= 8192:  # the reference, which it is compared with, needs L x L scores
            seconds |= torch_seconds(case, backward=backward, repeats=repeats)
    except Exception as error:
        seconds["torch"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    timed = {name: value for name, value in seconds.items() if isinstance(value, float)}
    fastest = min(timed.values(), default=0.0)
    return {"seconds": seconds, "ratios": {name: value / fastest for name, value in timed.items()}}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 4096, 32768])
    parser.add_argument("--heads", nargs="+", type=int, choices=(16, 32), default=[16, 32])
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of a batch (default 32768)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    if jax.default_backend() != "gpu":
        print(
            f"gpu_attention: this is {jax.default_backend()}, it needs a CUDA device; "
            "run it where jax[cuda12] finds one",
            file=sys.stderr,
        )
        return 2
    table = sys.stderr if arguments.json else sys.stdout
    report: dict = {}
    for length in arguments.lengths:
        for heads in arguments.heads:
            for packed in (False, True):
                for backward in (False, True):
                    name = f"{'packed' if packed else 'dense'}_{'backward' if backward else 'forward'}"
                    found = measure(
                        length,
                        heads,
                        packed=packed,
                        backward=backward,
                        tokens=arguments.tokens,
                        repeats=arguments.repeats,
                    )
                    report.setdefault(f"L{length}_H{heads}", {})[name] = found
                    words = " ".join(
                        f"{candidate}={found['ratios'].get(candidate, value)}"
                        for candidate, value in found["seconds"].items()
                    )
                    print(f"L={length} H={heads} {name}: {words}", file=table, flush=True)
    names = [name for name in ("jax", "jaxlib", "torch", "tokamax") if importlib.util.find_spec(name)]
    report["taken"] = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
