"""Feeds a training loop: a stateless shuffled order, batches assembled ahead in a thread, and a position that
is one integer.

The data is an endless stream: pass after pass over the examples, each pass in its own order. `position` is
the number of examples of that stream already consumed, over all hosts. The stream depends on the seed and the
number of examples alone (`data.batches.examples`: on the mixtures and the batch size too), so a run resumes at once
at any position and on any number of hosts. Habits from google-research/vmoe (one-integer position) and levanter
`data/_prp.py` (stateless permutation).
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput

_ROUNDS = 8


def shuffled(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Examples at the given places of the endless shuffled stream, in time and memory independent of `count`.

    Each pass of `count` places is a permutation of `range(count)` of its own: a Feistel network over the
    least a x b >= count with modular addition (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002), walking the cycle for the few values beyond `count`.

    Args:
        places: [n] integers >= 0.
        count: examples in one pass.
        seed: any integer.

    Returns:
        int64 [n], in [0, count).
    """
    epochs, values = np.divmod(np.asarray(places, np.uint64), np.uint64(count))
    side = math.isqrt(count - 1) + 1
    sides = np.uint64(side), np.uint64(-(-count // side))
    keys = _mix(_mix(np.full(1, seed % 2**64, np.uint64)) + epochs)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], keys[walking], sides)
        walking = walking[values[walking] >= count]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, sides: tuple[np.uint64, np.uint64]) -> np.ndarray:
    halves = [values % sides[0], values // sides[0]]
    for step in range(_ROUNDS):
        near, far = step % 2, 1 - step % 2
        halves[near] = (halves[near] + _mix(halves[far] + _mix(keys + np.uint64(step))) % sides[near]) % sides[near]
    return halves[1] * sides[0] + halves[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Loader(Iterator[tuple[Any, int]]):
    """Endless iterator of `(batch, position after it)`; a thread keeps `depth` batches ready.

    Hosts read the same stream: of every global batch each takes its own contiguous share, in host order. An
    exception of `assemble` is raised again where the batch was to be consumed. Close it, or use it in a
    `with` statement, to end the thread.

    Attributes:
        position: examples consumed so far over all hosts; a new Loader given it as `start_position` goes on
            from here.
        data_wait_seconds: time spent waiting for batches so far.
    """

    def __init__(
        self,
        assemble: Callable[[Any], Any],
        count: int,
        batch_size: int,
        seed: int,
        start_position: int = 0,
        *,
        host_index: int = 0,
        host_count: int = 1,
        depth: int = 2,
        order: Callable[[np.ndarray], Any] | None = None,
    ):
        """Starts reading ahead.

        Args:
            assemble: makes a batch of the indices (int64 [batch_size / host_count]) of its examples; called
                in the thread.
            count: examples of the table.
            batch_size: examples of a global batch.
            seed: of the order.
            start_position: examples already consumed.
            host_index: of this process; host_count: of all.
            depth: batches prepared ahead.
            order: gives what `assemble` is handed for places of the stream (int64); `shuffled` where None.

        Raises:
            BadInput: the batch is larger than the table (an example would meet itself), or hosts cannot share
                it equally.
        """
        if not 0 < batch_size <= count:
            raise BadInput(f"loader: a batch of {batch_size} of {count} examples; set a batch size from 1 to {count}")
        if batch_size % host_count:
            raise BadInput(
                f"loader: a batch of {batch_size} on {host_count} hosts; set a batch size that they can share"
            )
        self.position = start_position
        self.data_wait_seconds = 0.0
        self._assemble = assemble
        self._order = order or (lambda places: shuffled(places, count, seed))
        self._batch_size = batch_size
        self._share = slice(batch_size // host_count * host_index, batch_size // host_count * (host_index + 1))
        self._ready: queue.Queue[tuple[Any, int] | BaseException] = queue.Queue(depth)
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._produce, args=(start_position,), name="pplx_jax-loader", daemon=True
        )
        self._thread.start()

    def __next__(self) -> tuple[Any, int]:
        if self._failure is not None:
            raise self._failure
        if self._closing.is_set():
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.data_wait_seconds += time.perf_counter() - started
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self.position = item[1]
        return item

    def close(self) -> None:
        """Ends the thread; batches already prepared are discarded and the position stays where it is."""
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)  # makes room for a put that is waiting
            except queue.Empty:
                pass
        self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self, position: int) -> None:
        try:
            while not self._closing.is_set():
                places = np.arange(position, position + self._batch_size)[self._share]
                batch = self._assemble(self._order(places))
                position += self._batch_size
                self._put((batch, position))
        except BaseException as error:  # every failure belongs to the consumer
            self._put(error)

    def _put(self, item: tuple[Any, int] | BaseException) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
