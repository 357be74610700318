"""The lines between processes, with threads for processes: who is missing, who died, who waits for whom."""

import concurrent.futures
import contextlib
import queue
import socket
import threading
import time

import pytest
from helpers.job import free_ports

from pplx_jax.core.errors import BAD_INPUT, PROCESS_LOST, BadInput, ProcessLost
from pplx_jax.parallel import roll_call as module
from pplx_jax.parallel.line import Line
from pplx_jax.parallel.roll_call import roll_call


@pytest.fixture(autouse=True)
def this_process_has_not_failed(monkeypatch):
    monkeypatch.setattr(module, "_failed", None)
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.5)  # what fails here goes on


class Job:
    """Roll calls of `count` processes, each with a queue of the reasons it was to end for."""

    def __init__(self, count: int, silence: float = 20.0):
        self.ends = [queue.Queue() for _ in range(count)]
        self.codes: list[int] = []
        port = free_ports()

        def start(index: int):
            def end(reason: str, code: int) -> None:
                self.codes.append(code)
                self.ends[index].put(reason)

            return call(port, index, count, silence=silence, end=end)

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            self.calls = list(pool.map(start, range(count)))

    def close(self, *failure: str) -> None:
        with concurrent.futures.ThreadPoolExecutor(len(self.calls)) as pool:
            list(pool.map(lambda one: one.close(*failure), self.calls))


def call(port: int, index: int, count: int, *, startup: float = 20.0, silence: float = 20.0, end=None):
    return roll_call("127.0.0.1", port, index, count, startup_seconds=startup, silence_seconds=silence, end=end)


@pytest.fixture
def job():
    job = Job(3)
    yield job
    job.close()


def test_everyone_knows_everyone(job):
    for one in job.calls:
        assert sorted(one.members) == [0, 1, 2]
        assert str(one.members[2]) == str(job.calls[2].me)


def test_a_process_that_dies_is_named_to_all_others(job):
    victim = job.calls[2]
    victim._lines[0].socket.shutdown(socket.SHUT_RDWR)  # what the system does for a process that is killed
    for index in (0, 1):
        reason = job.ends[index].get(timeout=10)
        assert reason == f"{victim.me} died; process {index} of 3 stops too"


def test_the_death_of_the_first_is_named_too(job):
    job.calls[0]._closing = True  # a dead process watches nobody
    job.calls[0]._thread.join(timeout=20)
    for line in job.calls[0]._lines.values():
        line.socket.shutdown(socket.SHUT_RDWR)
    for index in (1, 2):
        assert job.ends[index].get(timeout=10) == f"{job.calls[0].me} died; process {index} of 3 stops too"


def test_a_machine_that_vanishes_is_missed(monkeypatch):
    """No socket closes; nothing more is heard."""
    job = Job(2, silence=1.0)
    silent = job.calls[1]._lines[0]
    monkeypatch.setattr(silent, "send", lambda message: None)
    assert "has not been heard of for 1 s; process 0 of 2 stops too" in job.ends[0].get(timeout=10)
    job.close()


def test_heartbeats_keep_a_quiet_job_alive():
    job = Job(2, silence=1.0)
    time.sleep(2.5)
    assert all(ends.empty() for ends in job.ends)
    job.close()


def test_a_failure_is_told_in_its_own_words(job):
    job.calls[1].close("NonFiniteLoss: pair step 3: loss is nan")
    for index in (0, 2):
        assert "failed: NonFiniteLoss: pair step 3: loss is nan" in job.ends[index].get(timeout=10)
    assert job.codes == [PROCESS_LOST] * 2


def test_the_others_of_a_job_that_is_refused_end_as_it_does(job):
    job.calls[1].close("BadInput: no corpus", BAD_INPUT)
    for index in (0, 2):
        assert "failed: BadInput: no corpus" in job.ends[index].get(timeout=10)
    assert job.codes == [BAD_INPUT] * 2


def test_the_first_tells_its_failure_to_all_before_it_hears_of_one_gone(job, monkeypatch):
    first, send = job.calls[0], Line.send

    def late(line, message):
        send(line, message)
        if line in first._lines.values() and "stop" in message:
            time.sleep(0.5)  # who is told is gone by the time that the next is

    monkeypatch.setattr(Line, "send", late)
    first.close("BadInput: no corpus", BAD_INPUT)
    for index in (1, 2):
        assert f"{first.me} failed: BadInput: no corpus" in job.ends[index].get(timeout=10)


def test_the_first_goes_last(job, monkeypatch):
    monkeypatch.setattr(module, "_LAST_SECONDS", 20.0)
    ended, first = threading.Event(), job.calls[0]

    def linger(reason, code):
        time.sleep(1.0)
        ended.set()

    monkeypatch.setattr(job.calls[2], "_end", linger)
    first.close("OSError: its disk is gone")
    assert ended.is_set()


def test_a_process_that_stood_still_hears_before_it_judges(monkeypatch):
    hear, held = module.RollCall._hear, set()

    def once_late(self, index, line, now):
        if self.me.index not in held:
            held.add(self.me.index)
            time.sleep(1.5)
        hear(self, index, line, now)

    monkeypatch.setattr(module.RollCall, "_hear", once_late)
    job = Job(2, silence=1.0)
    time.sleep(3.0)
    assert held == {0, 1} and all(ends.empty() for ends in job.ends)
    job.close()


def test_leaving_when_done_is_no_death():
    job = Job(3)
    job.close()
    assert all(ends.empty() for ends in job.ends)


def test_nobody_passes_a_barrier_before_the_last_is_there(job):
    passed: queue.Queue[int] = queue.Queue()

    def wait(index: int) -> None:
        job.calls[index].barrier("phase corpus")
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


def test_who_is_missing_is_named_by_the_first_and_told_to_the_others():
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(call, port, index, 4, startup=3.0) for index in (0, 2)]
        for one in tries:
            with pytest.raises(ProcessLost, match="process 0 of 4 waited 3 s for process 1, 3; start 4 processes with"):
                one.result(timeout=20)


def test_a_first_process_that_never_comes_is_named_with_its_address():
    port = free_ports()
    with pytest.raises(ProcessLost, match=f"process 1 of 2 waited 0.5 s for process 0 at 127.0.0.1:{port}"):
        call(port, 1, 2, startup=0.5)


def test_the_wait_is_said_in_a_line(caplog):
    with caplog.at_level("INFO"), pytest.raises(ProcessLost):
        call(free_ports(), 0, 3, startup=0.3)
    assert "process 0 of 3: waiting on port" in caplog.text and "for process 1, 2" in caplog.text


@pytest.mark.parametrize("others", [[(1, 3), (1, 3)], [(1, 2)], [(3, 3)]])
def test_processes_that_do_not_fit_together_are_refused(others):
    """Twice the same one, another number of them, one past the end."""
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(call, port, 0, 3, startup=5.0)
        rest = [pool.submit(call, port, index, count, startup=5.0) for index, count in others]
        with pytest.raises(BadInput, match="does not fit a job of 3 .* a --process_id of its own"):
            first.result(timeout=20)
        for one in rest:
            with pytest.raises(ProcessLost, match="does not fit"):
                one.result(timeout=20)


def test_strangers_are_not_counted():
    port = free_ports()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, port, 0, 2)
        for word in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b""):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
                    break
                time.sleep(0.05)
            with stranger:
                stranger.sendall(word)
        second = call(port, 1, 2)
        calls = [first.result(timeout=20), second]
        list(pool.map(lambda one: one.close(), calls))


def test_a_port_that_is_taken_is_bad_input():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on port {port}.*give --coordinator another port"):
            call(port, 0, 2, startup=1.0)
