"""Connections between processes, with threads for processes: who is missing, who died, who waits for whom."""

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import socket
import threading
import time

import pytest
from helpers.job import free_ports

from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST, BadInput, ProcessLost
from pplx_jax.parallel import connections, roll_call, stuck
from pplx_jax.parallel import heartbeat as module
from pplx_jax.parallel.connections import Peer, listening
from pplx_jax.parallel.heartbeat import Heartbeat

HOST = "127.0.0.1"
# Processes that are silent or exit one after the other: shorter times than seconds would fail on a busy machine.
waits_for_seconds = pytest.mark.slow


@pytest.fixture(autouse=True)
def this_process_has_not_failed(monkeypatch):
    monkeypatch.setattr(module, "_failed", False)
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.5)  # a process that fails here does not exit
    monkeypatch.setattr(module, "_GRACE_SECONDS", 1.2)


@pytest.fixture
def brief(monkeypatch):
    """Shortens the waits, for a job in which one process fails, or all at once."""
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.1)
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.3)


class Job:
    """Heartbeats of `count` processes, each with a queue of the reasons for which it should exit."""

    def __init__(self, count: int, silence: float = 20.0, stuck: float = 0.0):
        self.ends = [queue.Queue() for _ in range(count)]
        self.codes: list[int] = []
        port = free_ports()

        def start(index: int):
            def end(reason: str, code: int) -> None:
                self.codes.append(code)
                self.ends[index].put(reason)

            return connect(port, index, count, silence=silence, stuck=stuck, end=end)

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            self.processes = list(pool.map(start, range(count)))

    def close(self, *failure: str) -> None:
        with concurrent.futures.ThreadPoolExecutor(len(self.processes)) as pool:
            list(pool.map(lambda one: one.close(*failure), self.processes))

    def peer(self, index: int) -> Peer:
        """Returns the connection of a process to process 0."""
        return self.processes[index]._peers[0]


def connect(port: int, index: int, count: int, *, startup=20.0, silence=20.0, stuck=0.0, token="job", end=None):
    place = listening(HOST, port) if index == 0 else port
    seconds = {"startup_seconds": startup, "silence_seconds": silence, "stuck_seconds": stuck}
    return Heartbeat(HOST, place, index, count, token=token, end=end or refuse_to_end, **seconds)


def refuse_to_end(reason: str, code: int) -> None:
    raise AssertionError(reason)


def cut(peer: Peer) -> None:
    """Closes the connection as the system does for a process that is killed."""
    peer.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@pytest.fixture
def job():
    job = Job(3)
    yield job
    job.close()


def test_everyone_knows_everyone(job):
    for one in job.processes:
        assert one.names == {index: other.name for index, other in enumerate(job.processes)}


def test_a_process_that_dies_is_named_to_all_others(job):
    victim = job.processes[2]
    cut(job.peer(2))
    for index in (0, 1):
        reason = job.ends[index].get(timeout=10)
        assert reason == f"{victim.name} died; process {index} of 3 stops too"
    assert job.codes[:2] == [PROCESS_LOST] * 2


def test_the_death_of_the_first_is_named_too(job):
    first = job.processes[0]
    first._closing = True  # a dead process watches nobody
    for peer in list(first._peers.values()):
        cut(peer)
    for index in (1, 2):
        assert job.ends[index].get(timeout=10) == f"{first.name} died; process {index} of 3 stops too"


def test_a_machine_that_vanishes_is_missed(monkeypatch):
    """No socket closes; nothing more is heard."""
    job = Job(2, silence=1.0)
    monkeypatch.setattr(job.peer(1), "send", lambda message: None)
    assert "has not been heard of for 1 s; process 0 of 2 stops too" in job.ends[0].get(timeout=10)
    job.close()


@waits_for_seconds
def test_heartbeats_keep_a_quiet_job_alive():
    job = Job(2, silence=1.0)
    time.sleep(1.8)
    assert all(ends.empty() for ends in job.ends)
    job.close()


@pytest.mark.usefixtures("brief")
def test_a_failure_is_told_in_its_own_words(job):
    job.processes[1].close("failed: NonFiniteLoss: pair step 3: loss is nan")
    for index in (0, 2):
        assert "failed: NonFiniteLoss: pair step 3: loss is nan" in job.ends[index].get(timeout=10)
    assert job.codes == [PROCESS_LOST] * 2


@pytest.mark.usefixtures("brief")
def test_the_others_of_a_job_that_is_refused_end_as_it_does(job):
    job.processes[1].close("failed: BadInput: no corpus", BAD_INPUT)
    for index in (0, 2):
        assert "failed: BadInput: no corpus" in job.ends[index].get(timeout=10)
    assert job.codes == [BAD_INPUT] * 2


@pytest.mark.usefixtures("brief")
def test_processes_that_fail_of_the_same_cause_report_their_own_errors(job):
    job.close("failed: BadInput: no corpus", BAD_INPUT)
    assert all(ends.empty() for ends in job.ends)


@waits_for_seconds
def test_processes_that_fail_one_after_the_other_report_their_own_errors():
    """Each exits before the last one has told anybody: no exit of a process that failed is a death."""
    job = Job(4)

    def fail(index: int) -> None:
        time.sleep(0.3 * index)
        job.processes[3 - index].close("failed: BadInput: no corpus", BAD_INPUT)
        if index < 3:
            job.processes[3 - index]._loop.call_soon_threadsafe(cut, job.peer(3 - index))  # it exits

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(fail, range(4)))
    assert all(ends.empty() for ends in job.ends)


def test_a_process_that_fails_and_is_killed_at_once_has_failed(job):
    failing = threading.Thread(target=job.processes[1].close, args=("failed: BadInput: no corpus", BAD_INPUT))
    failing.start()
    time.sleep(0.3)
    cut(job.peer(1))
    for index in (0, 2):
        assert "failed: BadInput: no corpus" in job.ends[index].get(timeout=10)
    failing.join(timeout=30)
    assert job.codes == [BAD_INPUT] * 2


@pytest.mark.usefixtures("brief")
def test_sigterm_to_one_that_works_alone_stops_all(job):
    waiting = threading.Thread(target=job.processes[2].barrier, args=("phase export",), daemon=True)
    waiting.start()
    job.processes[0].close("was stopped by SIGTERM", PREEMPTED)
    for index in (1, 2):
        assert "was stopped by SIGTERM; process" in job.ends[index].get(timeout=10)
    assert job.codes == [PREEMPTED] * 2


def test_bad_input_is_reported_even_if_another_process_dies(job):
    failing = threading.Thread(target=job.processes[1].close, args=("failed: BadInput: no corpus", BAD_INPUT))
    failing.start()
    time.sleep(0.3)
    cut(job.peer(2))
    failing.join(timeout=30)
    assert job.ends[1].empty() and "died" in job.ends[0].get(timeout=10)


def test_a_failure_that_follows_from_a_death_is_reported_as_the_death(job):
    broken = threading.Thread(target=job.processes[1].close, args=("Gloo AllReduce failed",))
    broken.start()
    time.sleep(0.3)
    cut(job.peer(2))
    assert f"{job.processes[2].name} died" in job.ends[1].get(timeout=10)
    broken.join(timeout=10)


@pytest.mark.usefixtures("brief")
def test_the_first_tells_its_failure_to_all_before_it_hears_of_one_gone(job):
    first, loop = job.processes[0], job.processes[1]._loop

    def exit_at_once(reason, code):
        job.ends[1].put(reason)
        loop.call_soon(cut, job.peer(1))

    job.processes[1]._end = exit_at_once
    first.close("failed: BadInput: no corpus", BAD_INPUT)
    for index in (1, 2):
        assert f"{first.name} failed: BadInput: no corpus" in job.ends[index].get(timeout=10)


@waits_for_seconds
def test_the_first_exits_last(job, monkeypatch):
    monkeypatch.setattr(module, "_LAST_SECONDS", 20.0)
    ended, first = [], job.processes[0]

    def exits_later(index):
        def end(reason, code):
            time.sleep(1.0)
            ended.append(index)
            job.processes[index]._loop.call_soon(cut, job.peer(index))

        return end

    for index in (1, 2):
        job.processes[index]._end = exits_later(index)
    first.close("failed: OSError: its disk is gone")
    assert sorted(ended) == [1, 2]


@waits_for_seconds
def test_a_process_that_stood_still_hears_before_it_judges():
    job = Job(2, silence=1.0)
    for one in job.processes:
        one._loop.call_soon_threadsafe(time.sleep, 1.5)
    time.sleep(3.0)
    assert all(ends.empty() for ends in job.ends)
    job.close()


def test_leaving_when_done_is_no_death():
    job = Job(3)
    job.close()
    assert all(ends.empty() for ends in job.ends)


def test_no_process_passes_a_barrier_before_the_last_one_arrives(job):
    passed: queue.Queue[int] = queue.Queue()

    def wait(index: int) -> None:
        assert job.processes[index].barrier("phase corpus", 10 * index) == [0, 10, 20]
        passed.put(index)

    threads = [threading.Thread(target=wait, args=(index,)) for index in (0, 2)]
    for thread in threads:
        thread.start()
    with pytest.raises(queue.Empty):
        passed.get(timeout=0.3)
    wait(1)
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(passed.get(timeout=1) for _ in range(3)) == [0, 1, 2]


def test_who_is_behind_is_in_the_log_of_every_process(monkeypatch, caplog):
    monkeypatch.setattr(stuck, "_QUIET_SECONDS", 1.0)
    job = Job(3, silence=2.0)
    for index in (0, 1):
        job.processes[index].at("pair step 4")
    deadline = time.monotonic() + 20
    while caplog.text.count("no process has moved on") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    for index in range(3):
        assert f"process {index} of 3: no process has moved on for" in caplog.text
    assert f"waiting for {job.processes[2].name}, in the start" in caplog.text
    assert "the others wait in pair step 4" in caplog.text
    assert all(ends.empty() for ends in job.ends)
    job.close()


@waits_for_seconds
def test_who_is_stuck_ends_the_job(monkeypatch):
    monkeypatch.setattr(stuck, "_IDLE_CPU_SECONDS", 1e9)  # the three share the processor time of this test
    job = Job(3, silence=2.0, stuck=1.0)
    job.processes[0].at("pair step 4")
    for index, ends in enumerate(job.ends):
        reason = ends.get(timeout=20)
        assert f"waiting for {job.processes[1].name}, in the start" in reason
        assert reason.endswith(f"it is stuck; process {index} of 3 stops too")
    assert job.codes == [PROCESS_LOST] * 3


# --- The start


def test_a_port_that_never_answers_is_told_from_one_that_is_closed(monkeypatch):
    """A firewall drops packets; so does a socket whose queue is full."""
    monkeypatch.setattr(connections, "_NO_ANSWER_SECONDS", 1.0)
    with socket.create_server((HOST, 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        time.sleep(0.2)
        port = full.getsockname()[1]
        with pytest.raises(ProcessLost, match=f"no answer from process 0 at 127.0.0.1:{port} for 1 s.*a firewall"):
            connect(port, 1, 2)


def test_a_port_is_waited_for_until_it_opens():
    port = free_ports()
    with pytest.raises(ProcessLost, match=f"process 1 of 2 cannot reach process 0 at 127.0.0.1:{port}"):
        connections.wait_for_port(HOST, port, 0.3, "process 1 of 2")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connections.wait_for_port, HOST, port, 20.0, "process 1 of 2")
        time.sleep(0.3)
        assert not waiting.done()
        with socket.create_server((HOST, port)):
            waiting.result(timeout=20)


def test_who_is_missing_is_named_by_the_first_and_told_to_the_others(monkeypatch, caplog):
    monkeypatch.setattr(roll_call, "_REMINDER_SECONDS", 0.25)
    caplog.set_level("INFO")
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(connect, port, index, 4, startup=1.5) for index in (0, 2)]
        for one in tries:
            with pytest.raises(
                ProcessLost, match="process 0 of 4 waited 1.5 s for process 1, 3; start 4 processes with"
            ):
                one.result(timeout=20)
    assert "process 2 of 4: process 0 is waiting for process 1, 3, " in caplog.text


def test_a_first_process_that_never_comes_is_named_with_its_address():
    port = free_ports()
    with pytest.raises(ProcessLost, match=f"process 1 of 2 waited 0.5 s for process 0 at 127.0.0.1:{port}"):
        connect(port, 1, 2, startup=0.5)


def test_the_wait_is_said_in_a_line(caplog):
    with caplog.at_level("INFO"), pytest.raises(ProcessLost):
        connect(free_ports(), 0, 3, startup=0.3)
    assert "process 0 of 3: waiting for process 1, 2" in caplog.text


@pytest.mark.parametrize("index, count, token", [(1, 3, "job"), (2, 2, "job"), (3, 3, "job"), (2, 3, "another")])
def test_a_process_that_does_not_fit_is_refused_and_the_job_goes_on(caplog, index, count, token):
    """An index that is taken, another number of processes, an index past the end, another job."""
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        job = [pool.submit(connect, port, index, 3) for index in (0, 1)]
        there = ""
        while ", process 1 (" not in there:
            with pytest.raises(BadInput) as refused:
                connect(port, 9, 3)
            there = str(refused.value)
        with pytest.raises(BadInput, match="does not fit a job of 3 .* a different --process_id"):
            connect(port, index, count, token=token)
        job.append(pool.submit(connect, port, 2, 3))
        processes = [one.result(timeout=20) for one in job]
        list(pool.map(lambda one: one.close(), processes))
    assert "ignored a connection from ('127.0.0.1', " in caplog.text


def hello(**changes) -> bytes:
    usual = {"token": "job", "count": 2, "index": 1, "name": "a stranger"}
    return json.dumps({**usual, **changes}).encode() + b"\n"


STRANGERS = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"{}\n",
    b"",
    b"null\n",
    b"\xff\x00\xfe\n",
    b"[" * 60_000 + b"\n",
    b"x" * (2 << 20),
    hello(index="1"),
    hello(index=1.0),
    hello(index=True),
    hello(index=-1),
    hello(index=None),
    hello(count=3),
    hello(count="2"),
    hello(token=None),
    hello(token=["job"]),
    hello(name=None),
)


def test_strangers_are_logged_and_never_members(caplog):
    port = free_ports()
    silent = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(connect, port, 0, 2)
        for word in STRANGERS:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    stranger = socket.create_connection((HOST, port), timeout=5)
                    break
                time.sleep(0.05)
            with stranger, contextlib.suppress(OSError):
                stranger.sendall(word)
        silent += [socket.create_connection((HOST, port), timeout=5) for _ in range(20)]
        second = connect(port, 1, 2)
        processes = [first.result(timeout=20), second]
        assert set(processes[0].names) == {0, 1} and processes[0].names[1] == second.name
        list(pool.map(lambda one: one.close(), processes))
    for one in silent:
        one.close()
    assert caplog.text.count("ignored a connection from ('127.0.0.1', ") >= len(STRANGERS)


def test_a_process_that_leaves_before_the_start_may_come_again():
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(connect, port, 0, 3)
        for _ in range(100):
            with contextlib.suppress(OSError):
                early = socket.create_connection((HOST, port), timeout=5)
                break
            time.sleep(0.05)
        early.sendall(hello(count=3))
        time.sleep(0.3)
        early.close()
        time.sleep(0.3)
        others = [pool.submit(connect, port, index, 3) for index in (1, 2)]
        processes = [one.result(timeout=20) for one in (first, *others)]
        assert "a stranger" not in processes[0].names.values()
        list(pool.map(lambda one: one.close(), processes))


def test_a_port_that_is_taken_is_bad_input():
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on port {port}.*give --coordinator another port"):
            connect(port, 0, 2, startup=1.0)


@pytest.mark.parametrize(
    "host, interface",
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("", "0.0.0.0"), ("192.0.2.1", "0.0.0.0")],
)
def test_the_first_listens_on_the_interface_of_its_address(host, interface):
    with listening(host, 0) as server:
        assert server.getsockname()[0] == interface


def test_a_message_is_a_json_object_on_a_line():
    async def received(data: bytes):
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await Peer(reader, None).receive()

    assert asyncio.run(received(b'{"a": 1}\n')) == {"a": 1}
    for data in (b"1\n", b"[]\n", b"[" * 60_000, b"\xff\n"):
        with pytest.raises(ValueError, match="not a message"):
            asyncio.run(received(data))
    with pytest.raises(OSError, match="closed"):
        asyncio.run(received(b""))
