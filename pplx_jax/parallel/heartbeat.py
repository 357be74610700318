"""Which processes of a job are alive: each one keeps a connection to process 0 for heartbeats and a few messages.

JAX's coordination service cannot do this through its public API: when a process is missing or dead it ends the others
with SIGABRT, without the names of the missing ones, the reason of a failure or an exit code (measured in
docs/appendix-processes.md). These connections therefore open before `jax.distributed.initialize`.
"""

import asyncio
import collections
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST
from pplx_jax.core.native_logs import write_last_line
from pplx_jax.parallel.connections import Peer
from pplx_jax.parallel.roll_call import RollCall
from pplx_jax.parallel.stuck import Place, Watch, here

_BEATS = 6  # heartbeats in `silence_seconds`
_GRACE_SECONDS = 2.0  # from a failure until the other processes are told; see `Heartbeat.close`
_LAST_SECONDS = 5.0  # the longest time that process 0 waits for the others to exit first

_failed = False  # this process has told the others that it failed


class Heartbeat(RollCall):
    """The connections of one process; `close` them when the work is done.

    Args:
      host: where process 0 runs.
      port: on process 0 a listening socket, on the others its port.
      index: of this process.
      count: number of processes.
      token: the same for all processes of the job.
      startup_seconds: the longest wait until every process is connected.
      silence_seconds: a process that sends nothing for this long counts as dead.
      stuck_seconds: see `Watch`.
      about: what this process runs; see `difference`.
      hosts: of the processes by index, if they are known.
      end: called with the reason and an exit code when another process died or failed; ends this process by default.
    """

    def __init__(
        self,
        host: str,
        port: int | socket.socket,
        index: int,
        count: int,
        *,
        token: str,
        startup_seconds: float,
        silence_seconds: float,
        stuck_seconds: float = 0.0,
        about: Mapping[str, str] | None = None,
        hosts: Sequence[str] = (),
        end: Callable[[str, int], None] | None = None,
    ):
        self._stuck_seconds, self._place_now = stuck_seconds, (0, "the start")
        self._silence, self._end = silence_seconds, end or _end_process
        self._started = self._closing = False
        self._failure: int | None = None  # the exit code of an error of this process
        self._ended = asyncio.Event()  # process 0 has told this process to stop
        self._arrived: dict[str, dict[int, Any]] = collections.defaultdict(dict)  # process 0: who is at a barrier
        self._gates: dict[str, asyncio.Future] = collections.defaultdict(lambda: self._loop.create_future())
        super().__init__(host, port, index, count, token, startup_seconds, about or {}, hosts)

    def at(self, place: str = "") -> None:
        """Says where this process is; "" is the next wait at the same place."""
        moves, before = self._place_now
        self._place_now = moves + 1, place or before

    def barrier(self, name: str, value: Any = None) -> list[Any]:
        """Waits, without a time limit, until every process is at the barrier of this name.

        Returns:
          The value (anything that JSON can hold) of every process, by index.
        """
        self.at()
        return self._wait_for(self._pass(name, value))

    def close(self, failure: str | None = None, code: int = PROCESS_LOST) -> None:
        """Leaves the job. With a `failure`, the other processes exit with `code`.

        Process 0 knows it at once, and tells the others after `_GRACE_SECONDS`. If all processes fail for the same
        reason, each one has failed by then and reports its own error. If the failure is only a consequence of another
        process's death (a broken collective), that death is known by then and `end` is called with it.
        """
        global _failed
        if failure is None:
            self._wait_for(self._leave())
        else:
            self._wait_for(self._fail(f"{self.name} {failure}", code))
            _failed = True  # the connections stay open until this process exits

    def _start(self) -> None:
        self._started, self._watch = True, Watch(self.names, self._stuck_seconds)
        self._spawn(self._beat())
        logging.info("%s: all processes are connected: %s", self._place, ", ".join(self.names.values()))

    async def _read(self, index: int, peer: Peer) -> None:
        """Handles the messages of another process until it leaves or dies."""
        while True:
            try:
                message = await peer.receive()
            except (OSError, ValueError):
                return await self._lose(index, "died")
            match message:
                case {"bye": _}:
                    self._peers.pop(index, None)
                    return peer.writer.close()
                case {"failed": reason, "code": code}:
                    peer.failure = reason, code
                    if self.index == 0:
                        self._spawn(self._stop_later(reason, code))
                case {"stop": reason, "code": code, "died": died}:
                    self._spawn(self._stop(reason, code, died))  # meanwhile this reads on, until the other is gone
                case {"at": place}:
                    self._watch.note(index, Place(*place), peer.heard)
                case {"behind": report}:
                    logging.warning("%s: %s", self._place, report)
                case {"arrived": name, "value": value}:
                    self._arrive(name, index, value)
                case {"go": name, "values": values}:
                    self._gates[name].set_result(values)

    async def _beat(self) -> None:
        """Sends heartbeats, and finds the processes that send none."""
        beat, before = self._silence / _BEATS, time.monotonic()
        while not self._closing:
            await asyncio.sleep(beat)
            place, now = here(*self._place_now), time.monotonic()
            if self.index == 0:
                self._tell({})
                self._watch.note(0, place, now)
                await self._look(now)
            else:
                self._tell({"at": place})
            paused, before = now - before > 2 * beat, now
            for index, peer in list(self._peers.items()):
                if paused:  # this process did not run, and what the others sent meanwhile is still unread
                    peer.heard = now
                elif now - peer.heard > self._silence:
                    await self._lose(index, f"has not been heard of for {self._silence:g} s")

    async def _look(self, now: float) -> None:
        """On process 0: reports who is behind to every process, and ends the job if they are stuck."""
        if (found := self._watch.report(now)) is None:
            return
        report, stuck = found
        if stuck:
            return await self._stop(f"{report}; it is stuck", PROCESS_LOST, died=True)
        logging.warning("%s: %s", self._place, report)
        self._tell({"behind": report})

    async def _lose(self, index: int, what: str) -> None:
        lost = self._peers.pop(index, None)
        if lost is not None and lost.failure is not None:
            await self._stop(*lost.failure)
        elif lost is not None and self._started:
            await self._stop(f"{self.names[index]} {what}", PROCESS_LOST, died=True)
        elif lost is not None:
            logging.warning("%s: %s left before the start", self._place, self.names.pop(index))

    async def _stop(self, reason: str, code: int, died: bool = False) -> None:
        """Ends this process because another one died or failed, unless it reports an error of its own."""
        self._ended.set()
        # A broken collective may follow from a death. Bad input and SIGTERM never do.
        if self._closing or self._failure in (BAD_INPUT, PREEMPTED) or (self._failure is not None and not died):
            return
        await self._say_last(reason, code, died)
        self._end(f"{reason}; {self._place} stops too", code)

    async def _stop_later(self, reason: str, code: int) -> None:
        await asyncio.sleep(_GRACE_SECONDS)
        await self._stop(reason, code)

    async def _say_last(self, reason: str, code: int, died: bool = False) -> None:
        """Tells the others to stop. Process 0 then waits until they are gone: JAX aborts them when its service ends."""
        self._closing, deadline = True, time.monotonic() + _LAST_SECONDS
        self._tell({"stop": reason, "code": code, "died": died})
        while self.index == 0 and self._peers and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _fail(self, reason: str, code: int) -> None:
        self._failure = code
        self._tell({"failed": reason, "code": code})
        if self.index == 0:
            await asyncio.sleep(_GRACE_SECONDS)
            await self._say_last(reason, code)
            return
        with contextlib.suppress(TimeoutError):  # stays, so that its exit breaks no collective before all are told
            await asyncio.wait_for(self._ended.wait(), 2 * _GRACE_SECONDS + _LAST_SECONDS)

    async def _leave(self) -> None:
        self._closing = True
        self._tell({"bye": self.index})
        for peer in self._peers.values():
            peer.writer.write_eof()  # to close it here could discard the message
        self._peers.clear()

    async def _pass(self, name: str, value: Any) -> list[Any]:
        gate = self._gates[name]
        if self.index == 0:
            self._arrive(name, 0, value)
        else:
            self._tell({"arrived": name, "value": value})
        values = await gate
        del self._gates[name]
        return values

    def _arrive(self, name: str, index: int, value: Any) -> None:
        self._arrived[name][index] = value
        if len(self._arrived[name]) == self._count:
            values = [value for _, value in sorted(self._arrived.pop(name).items())]
            self._tell({"go": name, "values": values})
            self._gates[name].set_result(values)


def leave(code: int) -> None:
    """Exits at once if this process told the others that it failed; JAX would wait for them at a normal exit."""
    if _failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_process(reason: str, code: int) -> None:
    """Exits at once: the main thread may wait forever in a collective with the lost process."""
    if code == PROCESS_LOST:
        reason += "; start all processes again with the same command to resume from the last checkpoint"
    write_last_line(f"pplx-jax: {reason}")
    os._exit(code)
