"""Sends data between processes: rows of arrays from all to all, sums of counts, and bytes from process 0 to others."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from pplx_jax.parallel.processes import barrier

_BYTES_AT_ONCE = 64 << 20  # per process, on every device


def gather_rows(own: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Returns the rows of every process, in the order of the processes. Collective.

    It waits for the other processes without a time limit, because a collective operation alone would end after one.

    Args:
      own: [counts[this process], ...], of a type of at most 32 bits: JAX would cut longer ones.
      counts: number of rows of each process, known to all of them.
    """
    if jax.process_count() == 1:
        return [own]
    assert own.itemsize <= 4 and len(own) == counts[jax.process_index()], (own.dtype, len(own), counts)
    barrier("gather rows")
    most, width = max(counts), max(int(np.prod(own.shape[1:])) * own.itemsize, 1)
    step = max(_BYTES_AT_ONCE // width, 1)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for start in range(0, most, step):
        rows = min(step, 1 << (most - start - 1).bit_length())  # few sizes, so that few programs are compiled
        part = np.zeros((rows, *own.shape[1:]), own.dtype)
        part[: len(own[start : start + rows])] = own[start : start + rows]
        for into, count, found in zip(parts, counts, multihost_utils.process_allgather(part), strict=True):
            into.append(found[: max(count - start, 0)])
    return [np.concatenate(found) if found else own[:0] for found in parts]


def gather_ragged(own: Sequence[Sequence[int] | np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Returns the sequences of numbers (int32) of every process, in the order of the processes. Collective.

    Args:
      own: of this process.
      counts: number of sequences of each process, known to all of them.
    """
    lengths = gather_rows(np.array([len(one) for one in own], np.int32), counts)
    flat = np.concatenate([np.asarray(one, np.int32) for one in own]) if own else np.zeros(0, np.int32)
    found = gather_rows(flat, [int(one.sum()) for one in lengths])
    cut = [np.split(values, np.cumsum(size))[:-1] for size, values in zip(lengths, found, strict=True)]
    return list(itertools.chain(*cut))


def sum_counts(own: np.ndarray) -> np.ndarray:
    """Returns the sum over all processes of an int64 array. Collective; it waits for the others without a time limit.

    Args:
      own: of this process, of the same shape on all.
    """
    if jax.process_count() == 1:
        return own
    barrier("sum counts")
    flat = np.ascontiguousarray(own).reshape(-1)
    total = np.empty_like(flat)
    step = max(_BYTES_AT_ONCE // (flat.itemsize * jax.process_count()), 1)
    for start in range(0, flat.size, step):
        part = slice(start, start + step)
        found = multihost_utils.process_allgather(flat[part].view(np.int32))  # JAX would cut int64
        total[part] = np.ascontiguousarray(found).view(np.int64).sum(axis=0)
    return total.reshape(own.shape)


def broadcast_bytes(data: bytes) -> bytes:
    """Returns the bytes of process 0. Collective; it waits for the other processes without a time limit.

    Args:
      data: of process 0; ignored on the others.
    """
    if jax.process_count() == 1:
        return data
    barrier("broadcast")
    size = np.array([len(data) // _BYTES_AT_ONCE, len(data) % _BYTES_AT_ONCE], np.int32)
    whole, rest = map(int, multihost_utils.broadcast_one_to_all(size))
    parts = []
    for part, length in enumerate([_BYTES_AT_ONCE] * whole + [rest] * (rest > 0)):
        padded = np.zeros(1 << (length - 1).bit_length(), np.uint8)
        if jax.process_index() == 0:
            padded[:length] = np.frombuffer(data, np.uint8, length, part * _BYTES_AT_ONCE)
        parts.append(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes())
    return b"".join(parts)
