"""Processes that run something else, or do not see the same folder, are refused."""

import concurrent.futures
import threading

import pytest
from helpers.job import free_ports

from pplx_jax.core.errors import BadInput
from pplx_jax.parallel import same_job
from pplx_jax.parallel.connections import listening
from pplx_jax.parallel.heartbeat import Heartbeat
from pplx_jax.parallel.same_job import difference, unseen_by, what_runs


def run(workdir, config_text, until=None):
    """A verb."""


ARGUMENTS = {"workdir": "/a", "config_text": "A.b = 1\nProcesses.process_id = 0\nC.d = 2\n", "until": "data"}


def test_two_starts_of_one_command_are_equal():
    one = what_runs(run, ARGUMENTS)
    text = ARGUMENTS["config_text"].replace("_id = 0", "_id = 1").replace("A.b = 1", "A.b = 1  # --gin_param:3")
    other = what_runs(run, {**ARGUMENTS, "config_text": text})
    assert difference(one, other) is None
    assert one["version of pplx-jax"] and one["version of jax"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config_text": "A.b = 1\nC.d = 3\n"}, "the recipe is C.d = 3 there and C.d = 2 here"),
        ({"config_text": "A.b = 1\n"}, "the recipe is missing there and C.d = 2 here"),
        ({"until": "pair"}, "the flag --until is pair there and data here"),
        ({"until": None}, "the flag --until is missing there and data here"),
        ({"seed": 1}, "the flag --seed is 1 there and missing here"),
    ],
)
def test_what_differs_is_named(change, words):
    assert difference(what_runs(run, ARGUMENTS), what_runs(run, {**ARGUMENTS, **change})) == words


def test_another_version_is_named(monkeypatch):
    own = what_runs(run, ARGUMENTS)
    monkeypatch.setattr(same_job, "_digest_of_package", lambda: "other")
    assert "the version of pplx-jax is " in difference(own, what_runs(run, ARGUMENTS))
    for stranger in (None, {}, "older"):
        assert "is missing there" in difference(own, stranger)


def test_a_job_whose_processes_differ_is_refused_by_all_with_one_line():
    port, about = free_ports(), [{"recipe": "A.b = 1"}, {"recipe": "A.b = 1"}, {"recipe": "A.b = 2"}]

    def connect(index: int) -> str:
        place = listening("127.0.0.1", port) if index == 0 else port
        seconds = {"startup_seconds": 20.0, "silence_seconds": 20.0}
        with pytest.raises(BadInput) as refused:
            Heartbeat("127.0.0.1", place, index, 3, token="job", about=about[index], **seconds)
        return str(refused.value)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        lines = set(pool.map(connect, range(3)))
    assert len(lines) == 1
    line = lines.pop()
    assert line.startswith("process 2 (") and "the recipe is A.b = 2 there and A.b = 1 here; start the same" in line


class Barrier:
    """Exchanges values between threads."""

    def __init__(self, count: int):
        self._values, self._wait = [None] * count, threading.Barrier(count)

    def of(self, index: int):
        def barrier(name, value):
            self._values[index] = value
            self._wait.wait()
            found = list(self._values)
            self._wait.wait()
            return found

        return barrier


@pytest.mark.parametrize("folders, unseen", [(("a", "a", "a"), []), (("a", "a", "b"), [2]), (("a", "c", "b"), [1, 2])])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_not_shared_is_found_and_left_as_it_was(tmp_path, monkeypatch, folders, unseen, exists):
    monkeypatch.setattr(same_job, "_VISIBLE_SECONDS", 0.3)
    if exists:
        (tmp_path / "a").mkdir()
    barriers = Barrier(3)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: unseen_by(tmp_path / folders[i], i == 0, barriers.of(i)), range(3)))
    assert found == [unseen] * 3
    assert [path.name for path in tmp_path.rglob("*")] == (["a"] if exists else [])


def test_a_folder_that_cannot_be_written_is_left_to_the_work_to_refuse(tmp_path):
    (tmp_path / "file").touch()
    assert unseen_by(tmp_path / "file" / "run", True, lambda name, value: [value, True]) == []
