"""The progress line, on a terminal and off it, under a clock that the test turns."""

import io

import pytest

from pplx_jax.core.progress import CLEAR_LINE, Progress, duration, short


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_every_few_seconds(clock):
    stream = io.StringIO()
    with Progress("pair", total=600, stream=stream, clock=clock, interval=5) as progress:
        for step in range(1, 13):
            clock.now += 1
            progress.update(step, loss=1.23456, tokens=1000 * step)
    assert stream.getvalue().splitlines() == [
        "pair  step 0/600",
        "pair  step 1/600  loss 1.235",
        "pair  step 6/600  loss 1.235  1k tokens/s  ETA 9m54s",
        "pair  step 11/600  loss 1.235  1k tokens/s  ETA 9m49s",
        "pair  step 12/600  loss 1.235  in 12s",
    ]


def test_compiling_the_first_step_does_not_bend_the_eta(clock):
    stream = io.StringIO()
    with Progress("pair", total=101, stream=stream, clock=clock, interval=0) as progress:
        clock.now += 300  # compiles
        progress.update(1)
        clock.now += 1
        progress.update(2)
    assert "ETA 1m39s" in stream.getvalue()


def test_a_resumed_run_does_not_count_the_steps_before_it(clock):
    stream = io.StringIO()
    with Progress("pair", total=600, start=500, stream=stream, clock=clock, interval=0) as progress:
        clock.now += 60
        progress.update(501)
        clock.now += 2
        progress.update(502)
    assert stream.getvalue().startswith("pair  step 500/600\n")
    assert "0.5 step/s  ETA 3m16s" in stream.getvalue()


def test_the_window_follows_a_change_of_pace(clock):
    stream = io.StringIO()
    with Progress("files", total=1000, unit="file", stream=stream, clock=clock, interval=0) as progress:
        for done in range(1, 101):
            clock.now += 10
            progress.update(done)
        for done in range(101, 201):
            clock.now += 1
            progress.update(done)
    assert "file 200/1000  1 file/s  ETA 13m20s" in stream.getvalue()


def test_terminal_rewrites_one_line_and_cuts_it_at_the_width(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    with Progress("pair", total=600, stream=stream, clock=clock) as progress:
        progress.update(1, loss=2.0, a_long_name=3.0)
        progress.note("compiling")
    text = stream.getvalue()
    assert f"{CLEAR_LINE}pair  step 1/600  l{CLEAR_LINE}pair  compiling\n" in text
    assert text.endswith("\n")


def test_an_exception_ends_the_line_and_passes(clock):
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress("pair", total=9, stream=stream, clock=clock) as progress:
        progress.update(4)
        clock.now += 65
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("pair  step 4/9  stopped after 1m05s\n")


def test_unknown_total_gives_no_eta_and_disabled_says_nothing(clock):
    stream = io.StringIO()
    with Progress("embed", unit="text", stream=stream, clock=clock, interval=0) as progress:
        progress.update(5)
        clock.now += 1
        progress.update(9)
    assert "text 9  4 text/s\n" in stream.getvalue()
    silent = io.StringIO()
    with Progress("embed", stream=silent, clock=clock, enabled=False) as progress:
        progress.update(5)
        progress.note("hello")
    assert silent.getvalue() == ""


def test_values_are_fetched_only_when_shown(clock):
    class OnDevice:
        fetched = 0

        def __float__(self):
            OnDevice.fetched += 1
            return 1.0

    with Progress("pair", stream=io.StringIO(), clock=clock, interval=5) as progress:
        for step in range(1000):
            progress.update(step, loss=OnDevice())
    assert OnDevice.fetched == 2  # the first update and the last line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2s"), (38.4, "38s"), (59.7, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (442800, "5d03h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0.01234, "0.0123"), (45.6, "45.6"), (7890, "7.89k"), (1.2e6, "1.2M")])
def test_short(number, text):
    assert short(number) == text
