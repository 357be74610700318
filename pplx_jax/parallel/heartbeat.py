"""Which processes of a job are alive: each one keeps a connection to process 0 for heartbeats and a few messages.

JAX's coordination service cannot do this through its public API: when a process is missing or dead it ends the others
with SIGABRT, without the names of the missing ones, the reason of a failure or an exit code (measured in
docs/appendix-processes.md). These connections therefore open before `jax.distributed.initialize`.

A message is one line of JSON. Process 0 listens on the coordinator's interface until all processes are connected. It
accepts only a first message with the job's token, the job's number of processes and a free index. It logs and ignores
any other connection. JAX's service on the neighbouring port has no authentication, so the token need not be a secret.
When all are connected, it compares what they run and refuses the whole job if that differs.
"""

import asyncio
import collections
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from absl import logging

from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST, BadInput, ProcessLost
from pplx_jax.parallel.connections import MESSAGE_BYTES, Peer, connected, refusal_of
from pplx_jax.parallel.same_job import difference
from pplx_jax.parallel.stuck import Place, Watch, here

_BEATS = 6  # heartbeats in `silence_seconds`
_REMINDER_SECONDS = 15.0
_HELLO_SECONDS = 10.0  # for the first message of a connection
_GRACE_SECONDS = 2.0  # from a failure until the other processes are told; see `Heartbeat.close`
_LAST_SECONDS = 5.0  # the longest time that process 0 waits for the others to exit first

_failed = False  # this process has told the others that it failed


class Heartbeat:
    """The connections of one process; `close` them when the work is done.

    All `async` methods run in one event loop on a daemon thread, so they need no locks.

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

    Attributes:
      index: of this process.
      names: index -> "process 1 (host, pid 7)" of every connected process.

    Raises:
      ProcessLost: some processes did not connect in time; the message names them.
      BadInput: process 0 refused this process: its index is taken, or it belongs to another job; or it refused the
        job, because a process runs something else than process 0.
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
        self.name = f"process {index} ({socket.gethostname()}, pid {os.getpid()})"
        self.names = {index: self.name}
        self.index, self._count, self._place = index, count, f"process {index} of {count}"
        self._hello = {"token": token, "count": count, "index": index, "name": self.name, "about": dict(about or {})}
        self._differing: dict[int, str] = {}  # process 0: how another process differs from it
        self._hosts, self._stuck_seconds, self._place_now = hosts, stuck_seconds, (0, "the start")
        self._startup, self._silence, self._end = startup_seconds, silence_seconds, end or _end_process
        self._peers: dict[int, Peer] = {}  # process 0: all others; another process: process 0
        self._started = self._closing = False
        self._failure: int | None = None  # the exit code of an error of this process
        self._ended = asyncio.Event()  # process 0 has told this process to stop
        self._loop = asyncio.new_event_loop()
        self._complete = asyncio.Event()
        self._arrived: dict[str, dict[int, Any]] = collections.defaultdict(dict)  # process 0: who is at a barrier
        self._gates: dict[str, asyncio.Future] = collections.defaultdict(self._loop.create_future)
        self._tasks: list[asyncio.Task] = []  # the event loop itself keeps no reference to them
        threading.Thread(target=self._loop.run_forever, name="pplx_jax-heartbeat", daemon=True).start()
        self._wait_for(self._listen(port) if isinstance(port, socket.socket) else self._join(host, port))

    def at(self, place: str) -> None:
        """Says where this process is. All processes say the same places in the same order."""
        self._place_now = self._place_now[0] + 1, place

    def barrier(self, name: str, value: Any = None) -> list[Any]:
        """Waits, without a time limit, until every process is at the barrier of this name.

        Returns:
          The value (anything that JSON can hold) of every process, by index.
        """
        self.at(f"the wait for all processes after {name}")
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

    def _wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine in the event loop and waits for its result; signal handlers run meanwhile."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self, server: socket.socket) -> None:
        """On process 0: waits until all processes are connected."""
        deadline = time.monotonic() + self._startup
        listening = await asyncio.start_server(self._serve, sock=server, limit=MESSAGE_BYTES)
        while missing := ", ".join(self._label(index) for index in range(self._count) if index not in self.names):
            rest = deadline - time.monotonic()
            if rest <= 0:
                listening.close()
                how = (
                    "the same command on every host, and see why it ended on those"
                    if self._hosts
                    else f"{self._count} processes with the same --coordinator, --num_processes {self._count} and "
                    f"--process_id from 0 to {self._count - 1}"
                )
                reason = f"{self._place} waited {self._startup:g} s for process {missing}; start {how}"
                self._tell({"missing": reason})
                raise ProcessLost(reason)
            logging.info("%s: waiting for process %s, %.0f s more", self._place, missing, rest)
            self._complete.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._complete.wait(), min(rest, _REMINDER_SECONDS))
        listening.close()
        if self._differing:
            reason = self._differing[min(self._differing)]
            self._tell({"refused": reason})
            raise BadInput(reason)
        self._tell({"names": [self.names[index] for index in range(self._count)]})
        self._start()

    def _label(self, index: int) -> str:
        return f"{index} on {self._hosts[index]}" if self._hosts else str(index)

    async def _join(self, host: str, port: int) -> None:
        """On another process: connects to process 0 and waits until all processes are connected."""
        deadline = time.monotonic() + self._startup
        logging.info("%s: waiting for process 0 at %s:%d, %.0f s more", self._place, host, port, self._startup)
        while True:
            try:
                peer = await connected(host, port, self._startup, self._place)
                peer.send(self._hello)
                # A little longer than process 0 waits, which then names the missing ones.
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.0) + _LAST_SECONDS):
                    answer = await peer.receive()
                if not answer.keys().isdisjoint(("refused", "missing", "names")):
                    break
                raise ValueError("another program answers there")
            except (OSError, ValueError) as caught:
                error = str(caught)
                if time.monotonic() > deadline:
                    raise ProcessLost(
                        f"{self._place} waited {self._startup:g} s for process 0 at {host}:{port} "
                        f"({error or 'no answer'}); start process 0 there, or set --coordinator to the host where it "
                        "runs"
                    ) from None
                await asyncio.sleep(0.2)
        match answer:
            case {"refused": reason}:
                raise BadInput(reason)
            case {"missing": reason}:
                raise ProcessLost(reason)
        self.names, self._peers[0] = dict(enumerate(answer["names"])), peer
        self._spawn(self._read(0, peer))
        self._start()

    def _start(self) -> None:
        self._started, self._watch = True, Watch(self.names, self._stuck_seconds)
        self._spawn(self._beat())
        logging.info("%s: all processes are connected: %s", self._place, ", ".join(self.names.values()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handles a connection to process 0."""
        peer = Peer(reader, writer)
        try:
            hello = await asyncio.wait_for(peer.receive(), _HELLO_SECONDS)
            if refusal := refusal_of(hello, self._hello, self.names):
                peer.send({"refused": refusal})
                raise ValueError(refusal)
        except (OSError, ValueError) as error:
            address = writer.get_extra_info("peername")
            logging.warning("%s: ignored a connection from %s: %s", self._place, address, str(error) or "no message")
            return writer.close()
        index = hello["index"]
        self.names[index], self._peers[index] = hello["name"], peer
        self._differing.pop(index, None)
        if differing := difference(self._hello["about"], hello.get("about")):
            self._differing[index] = (
                f"{hello['name']} does not run what {self.name} runs: {differing}; start the same version with the "
                "same recipe and flags on every host"
            )
        if len(self.names) == self._count:
            self._complete.set()
        return await self._read(index, peer)

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
        while True:
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

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            peer.send(message)


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
    print(f"pplx-jax: {reason}", file=sys.stderr, flush=True)
    os._exit(code)
