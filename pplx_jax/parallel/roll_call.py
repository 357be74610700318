"""Who is there: every process of a job holds a line to process 0, which knows each by name.

JAX's own coordination service ends a process whose neighbour died too, after its heartbeats and with a stack trace of
its own. These lines say who is missing at the start, notice a death the moment its socket closes (or within
`silence_seconds`, should a machine vanish), and carry barriers that may take hours, such as one process writing a
corpus while the others wait.
"""

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from pplx_jax.core.errors import PROCESS_LOST, BadInput, ProcessLost
from pplx_jax.parallel.line import Line, Member

_BEATS = 6  # within a silence that counts as death
_REMINDER_SECONDS = 15.0
_GRACE_SECONDS = 2.0  # from a process's failure until it says so; see `RollCall.close`
_LAST_SECONDS = 5.0  # that process 0 waits for the others to be gone

_failed: "RollCall | None" = None  # in which this process said that it failed; its lines stay open until the end


class RollCall:
    """The lines of one process. Made by `roll_call`; `close` it when the work is done.

    Args:
      me: this process.
      count: how many there are.
      lines: a connected socket to each other process (process 0), or to process 0 alone.
      members: everyone, by index.
      silence_seconds: a process not heard of for so long counts as dead.
      end: called with the reason and an exit code when another process is lost or has failed; by default it ends this
        process.
    """

    def __init__(
        self,
        me: Member,
        count: int,
        lines: dict[int, Line],
        members: dict[int, Member],
        silence_seconds: float,
        end: Callable[[str, int], None] | None = None,
    ):
        self.me, self.count, self.members = me, count, members
        self._lines = lines
        self._silence = silence_seconds
        self._end = end or _end_process
        self._changed = threading.Condition()
        self._arrived: dict[str, set[int]] = {}
        self._released: set[str] = set()
        self._failing = self._closing = False
        self._thread = threading.Thread(target=self._watch, name="pplx_jax-roll-call", daemon=True)
        self._thread.start()

    def barrier(self, name: str) -> None:
        """Waits, for as long as it takes, until every process is at the barrier of this name.

        A name serves once. A process that dies meanwhile ends this one.
        """
        if self.me.index:
            self._lines[0].send({"at": name})
        with self._changed:
            if self.me.index == 0:
                self._changed.wait_for(lambda: len(self._arrived.get(name, ())) == self.count - 1)
                for line in list(self._lines.values()):
                    line.send({"go": name})
            else:
                self._changed.wait_for(lambda: name in self._released)
                self._released.discard(name)
            self._arrived.pop(name, None)

    def close(self, failure: str | None = None, code: int = PROCESS_LOST) -> None:
        """Leaves: quietly when the work is done, or with the reason why it failed, which ends the others.

        A failure is told after a moment. Should it be what the death of another looks like from here (a collective
        that breaks), the death is heard of by then, and `end` is called with it. Should all fail of one cause, each
        has failed by then, and says so in its own words.

        Args:
          failure: why, where it did not end well.
          code: what the others exit with then.
        """
        global _failed
        if failure is None:
            message: dict[str, Any] = {"bye": self.me.index}
        else:
            message = {"stop": f"{self.me} failed: {failure}", "code": code}
            self._failing = True
            self._thread.join(timeout=_GRACE_SECONDS)
            _failed = self
        self._closing = True
        for line in list(self._lines.values()):
            line.send(message)
        self._thread.join(timeout=self._silence)
        if failure is not None:
            return self._go_last()
        for line in list(self._lines.values()):
            line.close()
        return None

    def _watch(self) -> None:
        beat = self._silence / _BEATS
        sent, before = 0.0, time.monotonic()
        while not self._closing and self._lines:
            readable = self._readable(beat / 2)
            now = time.monotonic()
            if now - before > beat:  # this process stood still: what it did not hear may have been said
                for line in list(self._lines.values()):
                    line.heard = now
            before = now
            if now - sent > beat:
                sent = now
                for line in list(self._lines.values()):
                    line.send({})
            for index, line in list(self._lines.items()):
                if line.socket in readable:
                    self._hear(index, line, now)
                elif now - line.heard > self._silence:
                    self._lost("died", f"{self.members[index]} has not been heard of for {self._silence:g} s", index)

    def _readable(self, seconds: float) -> list[socket.socket]:
        return select.select([line.socket for line in list(self._lines.values())], [], [], seconds)[0]

    def _hear(self, index: int, line: Line, now: float) -> None:
        line.heard = now
        try:
            messages = line.receive()
        except (OSError, ValueError):
            messages = None
        if messages is None:
            return self._lost("died", f"{self.members[index]} died", index)
        for message in messages:
            for word in message.keys() & {"died", "stop"}:
                return self._lost(word, message[word], index, message.get("code", PROCESS_LOST))
            with self._changed:
                if "at" in message:
                    self._arrived.setdefault(message["at"], set()).add(index)
                if "go" in message:
                    self._released.add(message["go"])
                self._changed.notify_all()
            if "bye" in message:
                self._lines.pop(index).close()
                return None
        return None

    def _lost(self, word: str, reason: str, index: int, code: int = PROCESS_LOST) -> None:
        """Another has "died", or is about to "stop" for a failure of its own."""
        lost = self._lines.pop(index)
        if not self._closing:
            for line in list(self._lines.values()):  # process 0 tells the others
                line.send({word: reason, "code": code})
            if word == "died" or not self._failing:
                if word == "stop":
                    self._lines[index] = lost  # it is still there
                self._go_last()
                self._end(f"{reason}; process {self.me.index} of {self.count} stops too", code)
        self._lines.pop(index, None)
        lost.close()  # by default not before this process is at its end

    def _go_last(self) -> None:
        """Process 0 waits until the others are gone: with it goes JAX's coordination service, for want of which JAX
        ends a process before that has said why it stops."""
        deadline = time.monotonic() + _LAST_SECONDS
        while self.me.index == 0 and self._lines and time.monotonic() < deadline:
            readable = self._readable(0.1)
            for index, line in list(self._lines.items()):
                if line.socket in readable and not line.still_there():
                    self._lines.pop(index).close()


def roll_call(
    host: str,
    port: int,
    index: int,
    count: int,
    *,
    startup_seconds: float,
    silence_seconds: float,
    end: Callable[[str, int], None] | None = None,
) -> RollCall:
    """Waits until every process is there, saying who is waited for.

    Args:
      host: of process 0.
      port: that process 0 listens on.
      index: of this process.
      count: of all.
      startup_seconds: how long to wait.
      silence_seconds: see `RollCall`.
      end: see `RollCall`.

    Raises:
      ProcessLost: not everyone came in time; the message names those who did not.
      BadInput: two processes say they are the same one, or they disagree on how many there are; or the port is taken.
    """
    me = Member(index, socket.gethostname(), os.getpid())
    deadline = time.monotonic() + startup_seconds
    gather = _listen if index == 0 else _join
    lines, members = gather(me, host, port, count, deadline, startup_seconds)
    logging.info("process %d of %d: all are here: %s", index, count, ", ".join(map(str, members.values())))
    return RollCall(me, count, lines, members, silence_seconds, end)


def leave(code: int) -> None:
    """Ends a process that failed at once: JAX would wait, on the way out, for others that are told to stop."""
    if _failed is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def listening(port: int) -> socket.socket:
    """A server on a port of process 0. Raises BadInput where it is taken."""
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise BadInput(
            f"process 0 cannot listen on port {port} ({error.strerror}); give --coordinator another port"
        ) from None


def _listen(me: Member, host: str, port: int, count: int, deadline: float, seconds: float):
    server = listening(port)
    lines: dict[int, Line] = {}
    members = {0: me}
    reminded = -_REMINDER_SECONDS
    with server:
        while len(members) < count:
            missing = ", ".join(str(index) for index in range(count) if index not in members)
            now = time.monotonic()
            if now > deadline:
                reason = (
                    f"process 0 of {count} waited {seconds:g} s for process {missing}; start {count} processes with "
                    f"--coordinator {host}:{port - 1} --num_processes {count} and --process_id from 0 to {count - 1}"
                )
                for line in lines.values():
                    line.send({"stop": reason})
                raise ProcessLost(reason)
            if now - reminded >= _REMINDER_SECONDS:
                reminded = now
                logging.info(
                    "process 0 of %d: waiting on port %d for process %s, %.0f s more",
                    count,
                    port,
                    missing,
                    deadline - now,
                )
            server.settimeout(0.2)
            try:
                line = Line(server.accept()[0])
                hello = line.first(time.monotonic() + 2.0)
                member, wanted = Member(*hello["member"]), hello["count"]
            except (OSError, ValueError, KeyError, TypeError):  # nobody yet, or a stranger
                continue
            if wanted != count or member.index in members or not 0 < member.index < count:
                there = ", ".join(map(str, members.values()))
                reason = (
                    f"{member} of {wanted} does not fit a job of {count} that has {there}; "
                    "give every process the same --num_processes and a --process_id of its own"
                )
                for other in [line, *lines.values()]:
                    other.send({"stop": reason})
                raise BadInput(reason)
            lines[member.index], members[member.index] = line, member
    for line in lines.values():
        line.heard = time.monotonic()
        line.send({"all": list(members.values())})
    return lines, dict(sorted(members.items()))


def _join(me: Member, host: str, port: int, count: int, deadline: float, seconds: float):
    logging.info("process %d of %d: waiting for process 0 at %s:%d, %.0f s more", me.index, count, host, port, seconds)
    while True:
        try:
            line = Line(socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1)))
            line.send({"member": me, "count": count})
            answer = line.first(deadline + 5.0)  # process 0 knows better whom it waits for
            break
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise ProcessLost(
                    f"process {me.index} of {count} waited {seconds:g} s for process 0 at {host}:{port} ({error}); "
                    "start process 0 there, or let --coordinator name the host where it is"
                ) from None
            time.sleep(0.2)
    if "stop" in answer:
        raise ProcessLost(answer["stop"])
    members = [Member(*member) for member in answer["all"]]
    return {0: line}, {member.index: member for member in sorted(members)}


def _end_process(reason: str, code: int) -> None:
    """Ends this process at once: its main thread may wait for ever in a collective with the one that is gone."""
    if code == PROCESS_LOST:
        reason += "; start all processes again with the same command to go on from the last checkpoint"
    print(f"pplx-jax: {reason}", file=sys.stderr, flush=True)
    os._exit(code)
