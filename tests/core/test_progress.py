"""Progress on a terminal and in a log file, with a clock that the test controls."""

import io
import os
import re

import pytest

from pplx_jax.core.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def test_plain_lines_every_few_seconds(clock):
    stream = io.StringIO()
    with Progress("pair", total=600, stream=stream, interval=5) as progress:
        for step in range(1, 13):
            clock.now += 1
            progress.update(step, loss=1.23456, tokens=1000 * step)
    assert stream.getvalue().splitlines() == [
        "pair: step 0/600 [00:00<?, ?step/s]",
        "pair: step 1/600 [00:00<?, ?step/s, loss=1.235]",
        "pair: step 6/600 [00:05<09:54,  1.00step/s, loss=1.235, 1.00k tokens/s]",
        "pair: step 11/600 [00:10<09:49,  1.00step/s, loss=1.235, 1.00k tokens/s]",
        "pair: step 12/600 [00:12<09:48,  1.00step/s, loss=1.235]",
    ]


def test_compiling_the_first_step_does_not_change_the_remaining_time(clock):
    stream = io.StringIO()
    with Progress("pair", total=101, stream=stream, interval=0) as progress:
        clock.now += 300  # compiles
        progress.update(1)
        clock.now += 1
        progress.update(2)
    assert "step 2/101 [00:01<01:39," in stream.getvalue()


def test_a_resumed_run_does_not_count_the_steps_before_it(clock):
    stream = io.StringIO()
    with Progress("pair", total=600, start=500, stream=stream, interval=0) as progress:
        clock.now += 60
        progress.update(501)
        clock.now += 2
        progress.update(502)
    assert stream.getvalue().startswith("pair: step 500/600 [")
    assert "<03:16,  2.00s/step]" in stream.getvalue()


def test_the_rate_follows_a_change_of_pace(clock):
    stream = io.StringIO()
    with Progress("files", total=1000, unit="file", stream=stream, interval=0) as progress:
        for done in range(1, 101):
            clock.now += 10
            progress.update(done)
        for done in range(101, 201):
            clock.now += 0.5
            progress.update(done)
        assert stream.getvalue().splitlines()[-1] == "files: file 200/1000 [17:20<06:40,  2.00file/s]"


def test_a_terminal_shows_one_line_that_fits_its_width(clock, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda file: os.terminal_size((60, 24)))
    stream = Terminal()
    with Progress("pair", total=600, stream=stream) as progress:
        progress.update(1, loss=2.0, a_long_name=3.0)
        progress.note("compiling")
    text = stream.getvalue()
    assert "pair: compiling\n" in text and text.endswith("\n")
    assert text.count("\n") == 2 and "| step 1/600 [" in text
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]", text)) <= 60


def test_an_exception_ends_the_line_and_passes(clock):
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress("pair", total=9, stream=stream) as progress:
        progress.update(4)
        clock.now += 65
        raise KeyboardInterrupt
    assert re.search(r"step 4/9 \[01:05<.*\]\n$", stream.getvalue())


def test_unknown_total_gives_no_remaining_time_and_disabled_writes_nothing(clock):
    stream = io.StringIO()
    with Progress("embed", unit="text", stream=stream, interval=0) as progress:
        progress.update(5)
        clock.now += 1
        progress.update(9)
        clock.now += 1
    assert "embed: text 9 [00:01,  4.00text/s]\n" in stream.getvalue()
    silent = io.StringIO()
    with Progress("embed", stream=silent, enabled=False) as progress:
        progress.update(5)
        progress.note("hello")
    assert silent.getvalue() == ""


def test_lines_of_nested_work_do_not_mix(clock):
    stream = io.StringIO()
    with Progress("eval", total=2, unit="task", stream=stream, interval=0) as outer:
        outer.update(1)
        with Progress("encode", total=1, unit="text", stream=stream, interval=0) as inner:
            inner.update(1)
            inner.note("skipped a row")
    lines = stream.getvalue().splitlines()
    assert all(re.fullmatch(r"(eval: task|encode: text) \d/\d \[.*\]", line) for line in lines if "skipped" not in line)
    assert "encode: skipped a row" in lines


def test_values_are_fetched_only_when_shown(clock):
    class OnDevice:
        fetched = 0

        def __float__(self):
            OnDevice.fetched += 1
            return 1.0

    with Progress("pair", stream=io.StringIO(), interval=5) as progress:
        for step in range(1000):
            progress.update(step, loss=OnDevice())
    assert OnDevice.fetched == 2  # the first update and the last line
