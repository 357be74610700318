"""The start of a job: every other process connects to process 0, which names those that do not.

A message is one line of JSON. Process 0 listens on the coordinator's interface until all processes are connected. It
accepts only a first message with the job's token, the job's number of processes and a free index. It logs and ignores
any other connection. JAX's service on the neighbouring port has no authentication, so the token need not be a secret.
When all are connected, it compares what they run and refuses the whole job if that differs.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from absl import logging

from pplx_jax.core.errors import BadInput, ProcessLost
from pplx_jax.parallel.connections import MESSAGE_BYTES, Peer, connected, refusal_of
from pplx_jax.parallel.same_job import difference

_REMINDER_SECONDS = 15.0
_HELLO_SECONDS = 10.0  # for the first message of a connection
_LONGER_SECONDS = 5.0  # than process 0, so that it names the missing ones


class RollCall:
    """The connections of one process to its job: of process 0 to all others, of another process to process 0.

    All `async` methods run in one event loop on a daemon thread, so they need no locks. A subclass handles messages.

    Args:
      host: where process 0 runs.
      port: on process 0 a listening socket, on the others its port.
      index: of this process.
      count: number of processes.
      token: the same for all processes of the job.
      startup_seconds: the longest wait until every process is connected.
      about: what this process runs; see `difference`.
      hosts: of the processes by index, if they are known.

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
        token: str,
        startup_seconds: float,
        about: Mapping[str, str],
        hosts: Sequence[str],
    ):
        self.name = f"process {index} ({socket.gethostname()}, pid {os.getpid()})"
        self.names = {index: self.name}
        self.index, self._count, self._place = index, count, f"process {index} of {count}"
        self._hello = {"token": token, "count": count, "index": index, "name": self.name, "about": dict(about)}
        self._differing: dict[int, str] = {}  # process 0: how another process differs from it
        self._startup, self._hosts = startup_seconds, hosts
        self._peers: dict[int, Peer] = {}
        self._complete = asyncio.Event()
        self._tasks: list[asyncio.Task] = []  # the event loop itself keeps no reference to them
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="pplx_jax-heartbeat", daemon=True).start()
        self._wait_for(self._listen(port) if isinstance(port, socket.socket) else self._join(host, port))

    async def _read(self, index: int, peer: Peer) -> None:
        """Handles the messages of another process until it leaves or dies."""
        raise NotImplementedError

    def _start(self) -> None:
        """Called when all processes are connected."""
        raise NotImplementedError

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
            self._tell({"waiting": f"process {missing}, {rest:.0f} s more"})
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
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.0) + _LONGER_SECONDS):
                    while "waiting" in (answer := await peer.receive()):
                        logging.info("%s: process 0 is waiting for %s", self._place, answer["waiting"])
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

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            peer.send(message)
