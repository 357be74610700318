"""Prepares the next items of a stream in a background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Iterator[tuple[Item, int]], Generic[Item]):
    """Endless iterator of `(make(position), position + step)`; a thread keeps `depth` items ready.

    `make` runs in the thread. An exception of `make` is raised again by the `next` that would return its item. Call
    `close`, or use a `with` statement, to end the thread.

    Args:
        make: returns the item at a position.
        position: of the first item.
        step: from one position to the next.
        depth: items prepared ahead.

    Attributes:
        position: of the next item; a new Prefetch that starts there continues this one.
        wait_seconds: time spent so far in waiting for items.
    """

    def __init__(self, make: Callable[[int], Item], position: int, step: int, depth: int = 2):
        self.position = position
        self.wait_seconds = 0.0
        self._make, self._step = make, step
        self._ready: queue.Queue[tuple[Item, int] | BaseException] = queue.Queue(depth)
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(position,), name="pplx_jax-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[Item, int]:
        if self._failure is not None:
            raise self._failure
        if self._closing.is_set():
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds += time.perf_counter() - started
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self.position = item[1]
        return item

    def close(self) -> None:
        """Ends the thread and discards the items that are ready; `position` stays as it is."""
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)  # makes room for a `put` that waits
            except queue.Empty:
                pass
        self._thread.join()

    def __enter__(self) -> Prefetch[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self, position: int) -> None:
        try:
            while not self._closing.is_set():
                item = self._make(position)
                position += self._step
                self._put((item, position))
        except BaseException as error:  # the consumer raises it
            self._put(error)

    def _put(self, item: tuple[Item, int] | BaseException) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
