"""Divides work between the processes of a job, or between workers that do not know each other."""

import re
from collections.abc import Sequence

import jax

from pplx_jax.core.errors import BadInput

Share = tuple[int, int]


def deal(weights: Sequence[float], count: int) -> list[list[int]]:
    """Deals items to `count` shares of about equal weight: the heaviest first, each to the lightest share so far.

    Args:
      weights: of each item.
      count: number of shares.

    Returns:
      The indices of the items of each share, ascending. Equal weights give the same result everywhere.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        lightest = totals.index(min(totals))
        shares[lightest].append(item)
        totals[lightest] += weights[item]
    return [sorted(share) for share in shares]


def own_share() -> Share:
    """Returns the index of this process and the number of processes. A single process finds it without a device."""
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def parse_share(text: str) -> Share:
    """Returns (I, N) of "I/N", the share I of N.

    Raises:
      BadInput: it is not two numbers, or I is not from 0 to N - 1.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if index >= count:
        raise BadInput(f"shard {text}: give I/N with I from 0 to N - 1, such as 0/4 for the first of four shares")
    return index, count
