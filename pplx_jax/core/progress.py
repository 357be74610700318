"""How far a long piece of work is: one updating line on a terminal, a line every few seconds elsewhere."""

import collections
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

CLEAR_LINE = "\r\x1b[2K"


class Progress:
    """Reports `label  unit done/total  values  rate  ETA` on standard error.

        with Progress("pair", total=600, unit="step") as progress:
            for step in range(1, 601):
                ...
                progress.update(step, loss=loss, tokens=tokens_so_far)

    The rate comes from a sliding window that opens at the first update, so what happens before it (compiling
    the first step, the steps of an earlier run) neither slows the rate nor bends the ETA. An update between
    two reports costs one reading of the clock; values may be device arrays, fetched only when shown.

    Args:
        label: the stage or phase.
        total: units at the end; None where it is not known, then no ETA is given.
        unit: what is counted, in the singular ("step", "file", "text").
        start: units that an earlier run has done.
        stream: where to write; standard error by default.
        clock: seconds, monotonic.
        interval: least seconds between two reports; by default 0.2 on a terminal, 5 elsewhere.
        enabled: False says nothing at all, for the processes of a run that are not the first.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "step",
        *,
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float | None = None,
        enabled: bool = True,
    ):
        self._label, self._total, self._unit, self._done = label, total, unit, start
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._interval = interval if interval is not None else (0.2 if self._terminal else 5.0)
        self._enabled = enabled
        self._values: dict[str, Any] = {}
        self._entered = clock()
        self._window: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=60)

    def __enter__(self) -> "Progress":
        self._entered = self._clock()
        self._write(self._state())  # the first update may be minutes away
        return self

    def __exit__(self, kind, error, trace) -> None:
        how = "in" if kind is None else "stopped after"
        self._write([*self._state(), f"{how} {duration(self._clock() - self._entered)}"], keep=True)

    def update(self, done: int, *, tokens: int = 0, **values: Any) -> None:
        """Says how far the work is.

        Args:
            done: units done so far, those of an earlier run included.
            tokens: tokens done so far, counted from anywhere; 0 where tokens are not counted.
            **values: numbers to show by name ("loss").
        """
        self._done, self._values = done, values
        now = self._clock()
        if not self._window or now - self._window[-1][0] >= self._interval:
            self._window.append((now, done, tokens))
            self._write([*self._state(), *self._pace()])

    def note(self, text: str) -> None:
        """Writes a line that stays, such as "compiling"."""
        self._write([self._label, text], keep=True)

    def _state(self) -> list[str]:
        total = "" if self._total is None else f"/{self._total}"
        values = [f"{name} {float(value):.4g}" for name, value in self._values.items()]
        return [self._label, f"{self._unit} {self._done}{total}", *values]

    def _pace(self) -> list[str]:
        (first_time, first_done, first_tokens), (now, done, tokens) = self._window[0], self._window[-1]
        seconds = now - first_time
        if seconds <= 0 or done <= first_done:
            return []
        rate = (done - first_done) / seconds
        if tokens > first_tokens:
            pace = [f"{short((tokens - first_tokens) / seconds)} tokens/s"]
        else:
            pace = [f"{short(rate)} {self._unit}/s"]
        if self._total is not None:
            pace.append(f"ETA {duration(max(0, self._total - done) / rate)}")
        return pace

    def _write(self, parts: list[str], keep: bool = False) -> None:
        if not self._enabled:
            return
        line = "  ".join(parts)
        if self._terminal:
            # A line that wraps cannot be cleared, so one that will be is cut at the terminal's width.
            line = CLEAR_LINE + (f"{line}\n" if keep else line[: shutil.get_terminal_size().columns - 1])
        else:
            line += "\n"
        self._stream.write(line)
        self._stream.flush()


def short(number: float) -> str:
    """Three figures and a magnitude: 0.0123, 45.6, 7.89k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Two units at most: 4.2s, 38s, 3m05s, 2h07m, 5d03h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"
