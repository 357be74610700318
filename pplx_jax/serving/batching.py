"""Batches concurrent requests, so that many small ones need one forward pass."""

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pplx_jax.inference.packed_encoder import Tokens
from pplx_jax.serving.errors import RequestError

Encode = Callable[[Sequence[Tokens], np.ndarray], np.ndarray]


@dataclasses.dataclass(eq=False)
class _Job:
    ids: Sequence[Tokens]
    counts: np.ndarray
    tokens: int
    cost: int
    result: "asyncio.Future[np.ndarray]"


class Batcher:
    """A queue for an encoder that processes one batch at a time, in a separate thread.

    When the encoder is free, a batch takes the waiting requests in order of arrival, up to `max_tokens`. If there are
    fewer tokens, it waits up to `max_wait` for more requests. So an idle server starts after at most `max_wait`, and a
    busy server batches without waiting. Everything runs on one event loop.

    Args:
        encode: returns pooled vectors [C, D] for token ids of chunks and the number of chunks of each document.
        max_tokens: maximum tokens of a batch, unless a single request has more.
        max_wait: in seconds.
        max_queued_tokens: above this number of waiting tokens, requests are refused with status 429. A text counts as
            at least one token, so that requests without tokens are refused too.
        encoded: called after every batch with its number of tokens and the seconds of the encoder.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        max_tokens: int,
        max_wait: float,
        max_queued_tokens: int,
        encoded: Callable[[int, float], None] = lambda tokens, seconds: None,
    ):
        self._encode, self._encoded = encode, encoded
        self._max_tokens, self._max_wait, self._max_queued = max_tokens, max_wait, max_queued_tokens
        self._jobs: list[_Job] = []
        self._queued_tokens = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self.requests = self.batches = self.tokens = 0

    @property
    def queued_tokens(self) -> int:
        """Number of waiting tokens; a text counts as at least one."""
        return self._queued_tokens

    @property
    def queued_requests(self) -> int:
        """Number of waiting requests."""
        return len(self._jobs)

    async def submit(self, ids: Sequence[Tokens], counts: np.ndarray, tokens: int) -> np.ndarray:
        """Returns the pooled vectors [C, D] of one request. A request that is cancelled leaves the queue.

        Raises:
            RequestError: 429, the queue is full; 503, the server is stopping.
        """
        if self._closing:
            raise RequestError(503, "the server is stopping", code="stopping")
        cost = sum(max(len(chunk), 1) for chunk in ids)
        if self._jobs and self._queued_tokens + cost > self._max_queued:
            raise RequestError(429, f"{self._queued_tokens} tokens are waiting; try again later", code="busy")
        job = _Job(ids, counts, tokens, cost, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._queued_tokens += cost
        self._arrived.set()
        try:
            return await job.result
        finally:
            if job in self._jobs:  # the client left while it waited
                self._jobs.remove(job)
                self._queued_tokens -= cost

    async def between_batches(self, work: Callable[..., object], *arguments: Any) -> None:
        """Runs a function in the thread of the encoder, before the next batch."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def run(self) -> None:
        """Processes requests until `close`, then finishes the queued ones."""
        while True:
            while not self._jobs:
                if self._closing:
                    self._thread.shutdown()
                    return
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            batch = self._take()
            if batch:
                await self._work(batch)

    def close(self) -> None:
        """Makes `run` return."""
        self._closing = True
        self._arrived.set()

    async def _gather(self) -> None:
        deadline = time.monotonic() + self._max_wait
        while self._queued_tokens < self._max_tokens and not self._closing:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), deadline - time.monotonic())
            except TimeoutError:
                return

    def _take(self) -> list[_Job]:
        """Removes the next batch from the queue and returns its jobs, without those whose client disconnected."""
        taken, cost = 0, 0
        while taken < len(self._jobs) and (not taken or cost + self._jobs[taken].cost <= self._max_tokens):
            cost += self._jobs[taken].cost
            taken += 1
        batch, self._jobs = self._jobs[:taken], self._jobs[taken:]
        self._queued_tokens -= cost
        return [job for job in batch if not job.result.done()]

    async def _work(self, batch: list[_Job]) -> None:
        ids = [chunk for job in batch for chunk in job.ids]
        counts = np.concatenate([job.counts for job in batch])
        started = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            vectors = await loop.run_in_executor(self._thread, self._encode, ids, counts)
        except Exception as error:
            if len(batch) > 1:  # the error may belong to one request: encode each alone
                for job in batch:
                    if not job.result.done():
                        await self._work([job])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        tokens = sum(job.tokens for job in batch)
        self.requests += len(batch)
        self.batches += 1
        self.tokens += tokens
        self._encoded(tokens, time.monotonic() - started)
        parts = np.split(vectors, np.cumsum([len(job.ids) for job in batch])[:-1])
        for job, part in zip(batch, parts, strict=True):
            if not job.result.done():
                job.result.set_result(part)
