"""A connection between two processes of a job, and the socket on which process 0 accepts them."""

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from pplx_jax.core.errors import BadInput, ProcessLost

MESSAGE_BYTES = 1 << 20
_NO_ANSWER_SECONDS = 30.0  # an open or a closed port answers at once; a firewall that drops packets never does


class Peer:
    """A connection to another process. A message is a JSON object on one line.

    Attributes:
      writer: of the connection.
      heard: when the last message came, in seconds of `time.monotonic`.
      failure: why that process fails, and its exit code; None while it works.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.writer, self._reader, self.heard = writer, reader, time.monotonic()
        self.failure: tuple[str, int] | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; a closed connection shows in `receive`."""
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Returns the next message. Raises OSError at the end of the connection, ValueError for anything else."""
        line = await self._reader.readline()
        if not line:
            raise ConnectionError("the connection was closed")
        self.heard = time.monotonic()
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(message := json.loads(line), dict):
                return message
        raise ValueError("not a message of this protocol")


async def connected(host: str, port: int, seconds: float, place: str) -> Peer:
    """Returns a connection to a port of process 0.

    Args:
      host: where process 0 runs.
      port: of it.
      seconds: the longest wait for any answer; at most `_NO_ANSWER_SECONDS`.
      place: of this process, for the message.

    Raises:
      ProcessLost: nothing answers in this time, not even that the port is closed.
      OSError: the port is closed, or the host is not known.
    """
    seconds = min(seconds, _NO_ANSWER_SECONDS)
    try:
        async with asyncio.timeout(seconds):
            return Peer(*await asyncio.open_connection(host, port, limit=MESSAGE_BYTES))
    except TimeoutError:
        raise _no_answer(host, port, seconds, place) from None


def wait_for_port(host: str, port: int, seconds: float, place: str) -> None:
    """Waits until process 0 accepts connections on a port. See `connected` for the arguments.

    Raises:
      ProcessLost: as `connected`, or the port stays closed for `seconds`.
    """
    deadline, patience = time.monotonic() + seconds, min(seconds, _NO_ANSWER_SECONDS)
    while True:
        try:
            return socket.create_connection((host, port), timeout=patience).close()
        except TimeoutError:
            raise _no_answer(host, port, patience, place) from None
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessLost(f"{place} cannot reach process 0 at {host}:{port} ({error})") from None
            time.sleep(0.2)


def _no_answer(host: str, port: int, seconds: float, place: str) -> ProcessLost:
    return ProcessLost(
        f"{place}: no answer from process 0 at {host}:{port} for {seconds:.0f} s. The host is down, or a firewall "
        "drops the packets: open this port and its neighbour between the hosts of the job, or give --coordinator "
        "another port"
    )


def refusal_of(hello: Mapping[str, Any], expected: Mapping[str, Any], names: Mapping[int, str]) -> str | None:
    """Returns why a first message does not come from a process that the job waits for; None if it does.

    Args:
      hello: the message: token and number of processes of the job, index and name of the process.
      expected: that of process 0.
      names: of the processes that are connected, by index.
    """
    index, name, count = hello.get("index"), hello.get("name"), expected["count"]
    if type(index) is not int or not isinstance(name, str):
        return "not a message of this protocol"
    same_job = all(hello.get(field) == expected[field] for field in ("token", "count"))
    if same_job and 0 < index < count and index not in names:
        return None
    return (
        f"{name} of {hello.get('count')} does not fit a job of {count} that has {', '.join(names.values())}; give "
        "every process the same --coordinator and --num_processes and a different --process_id"
    )


def listening(host: str, port: int) -> socket.socket:
    """Returns a listening socket of process 0.

    It listens on the network interface that has the address of `host`. If `host` is empty, not an address of this
    machine (a forwarded one), or a name that only this machine takes for loopback, it listens on all interfaces.

    Raises:
      BadInput: the port is taken.
    """
    try:
        return socket.create_server((_interface(host), port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without the address, which Python adds
        raise BadInput(f"process 0 cannot listen on port {port} ({reason}); give --coordinator another port") from None


def _interface(host: str) -> str:
    try:
        address = socket.gethostbyname(host)
        socket.create_server((address, 0)).close()
    except OSError:
        return ""
    loopback = ipaddress.ip_address(address).is_loopback
    return "" if loopback and host not in ("localhost", address) else address
