"""A line between two processes of a job: JSON over a socket, and who is at its ends."""

import contextlib
import json
import socket
import threading
import time
from typing import Any, NamedTuple

_LINE_BYTES = 1 << 16


class Member(NamedTuple):
    """One process: its place, and where it runs."""

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} ({self.host}, pid {self.pid})"


class Line:
    """A socket of JSON lines."""

    def __init__(self, connected: socket.socket):
        connected.setblocking(True)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.heard = connected, time.monotonic()
        self._pending = b""
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends; a peer that is gone is noticed where it is read from."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that are there, at least a part of one; None at the end. Raises OSError or ValueError."""
        data = self.socket.recv(_LINE_BYTES)
        if not data:
            return None
        *whole, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in whole]

    def still_there(self) -> bool:
        """Reads on, whatever it is; False at the end."""
        try:
            return self.receive() is not None
        except (OSError, ValueError):
            return False

    def first(self, deadline: float) -> dict[str, Any]:
        """The first message. Raises OSError (of time too) or ValueError."""
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
            messages = self.receive()
            if messages is None or len(self._pending) > _LINE_BYTES:
                raise ConnectionError("closed")
            if messages:
                self.socket.setblocking(True)
                return messages[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
