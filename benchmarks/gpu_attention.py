"""Attention on a GPU: the implementations that run there, and PyTorch's, dense and packed, forward and backward.

Each candidate is compared with the reference before it is timed. A packed sequence holds texts of unequal lengths. A
candidate without support for packed sequences gets each text as a separate sequence, padded to the longest, and its
time includes moving the texts. Ratios are of the median time to that of the fastest candidate. Needs a CUDA device:
without one it exits with code 2.

It ends within ten minutes: no case begins after `--minutes`, and those that did not begin are listed.

Usage: python benchmarks/gpu_attention.py [--lengths 4096 32768] [--heads 16 32] [--repeats 20] [--minutes 9] [--json]
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import (
    TOLERANCE,
    Case,
    check,
    make_case,
    measure_all,
    off,
    one_pass,
    parser_of,
    ratios,
    seconds_of,
    short,
)

from pplx_jax.kernels.attention import attention, blockwise, reference


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
        "ours": lambda *arrays: attention(*arrays, ids),
        "blockwise": lambda *arrays: blockwise.attention(*arrays, ids),
        "cudnn": _cudnn if dense else unpacked(_cudnn, case),
    }
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = _tokamax if dense else unpacked(_tokamax, case)
    return found


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
    if not off((jnp.asarray(mixed),), (exact,)) < TOLERANCE:
        raise ValueError(f"{name} differs from the reference")
    return {name: seconds_of(run, lambda _: torch.cuda.synchronize(), repeats)}


def measure(length: int, heads: int, *, packed: bool, backward: bool, tokens: int, repeats: int) -> dict:
    """Returns the seconds of each candidate, or its error, and ratios to the fastest."""
    case = make_case(max(tokens // length, 1), length, heads, packed=packed)
    seconds: dict[str, float | str] = {}
    for name, run in jax_candidates(case).items():
        try:
            check(jax_candidates, name, heads, packed=packed, backward=backward)
            timed = one_pass(run, backward=backward)
            call = functools.partial(timed, case.query, case.key, case.value)
            seconds[name] = seconds_of(call, jax.block_until_ready, repeats)
        except Exception as error:  # the table shows the error of a candidate that cannot run
            seconds[name] = short(error)
    try:
        if length <= 8192:  # the reference, which it is compared with, needs L x L scores
            seconds |= torch_seconds(case, backward=backward, repeats=repeats)
    except Exception as error:
        seconds["torch"] = short(error)
    return {"seconds": seconds, "ratios": ratios(seconds)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return parser_of(__doc__).parse_args(arguments)


def main() -> int:
    arguments = parse()
    if jax.default_backend() != "gpu":
        print(
            f"gpu_attention: this is {jax.default_backend()}, it needs a CUDA device; "
            "run it where jax[cuda12] finds one",
            file=sys.stderr,
        )
        return 2
    run = functools.partial(measure, tokens=arguments.tokens, repeats=arguments.repeats)
    measure_all(arguments, run, ("jax", "jaxlib", "torch", "tokamax"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
