"""Progress on standard error, by tqdm: a bar on a terminal, one line every few seconds in a log file."""

import sys
import threading
from typing import Any, TextIO

import tqdm

_OF_TOTAL = "{unit} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_NO_TOTAL = "{unit} {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"
_MOVES_UP = "\x1b[A"


class Progress:
    """Reports how much of a long task is done, at what rate, and how long the rest takes.

        with Progress("pair", total=600, unit="step") as progress:
            for step in range(1, 601):
                ...
                progress.update(step, loss=loss, tokens=tokens_so_far)

    An update between two reports costs one reading of the clock; values may be device arrays, which are fetched only
    when they are shown. The rate starts with the first update, so that compiling the first step does not count.

    Args:
        label: the stage or phase.
        total: units at the end; None if unknown, then no remaining time is shown.
        unit: what is counted, in the singular ("step", "file", "text").
        start: units that an earlier run has done.
        stream: where to write; standard error by default.
        interval: seconds between two reports; by default 0.2 on a terminal, 5 elsewhere.
        enabled: False writes nothing, for all processes of a job but the first.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "step",
        *,
        start: int = 0,
        stream: TextIO | None = None,
        interval: float | None = None,
        enabled: bool = True,
    ):
        stream = sys.stderr if stream is None else stream
        self._terminal = terminal = stream.isatty()
        state = _NO_TOTAL if total is None else _OF_TOTAL
        self._bar = _Bar(
            desc=label,
            total=total,
            unit=unit,
            initial=start,
            file=stream if terminal else _Lines(stream),
            mininterval=interval if interval is not None else (0.2 if terminal else 5.0),
            miniters=1,
            bar_format=("{l_bar}{bar}| " if terminal and total else "{desc}: ") + state,
            dynamic_ncols=True,
            disable=not enabled,
        )
        self._start, self._opened = start, getattr(self._bar, "start_t", 0.0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not self._bar.disable:
            self._bar.start_t, self._bar.initial = self._opened, self._start  # the last line says what all of it took
            self._bar.close()

    def update(self, done: int, *, tokens: int = 0, **values: Any) -> None:
        """Sets how much is done.

        Args:
            done: units done so far, including those of an earlier run.
            tokens: tokens done so far, counted from anywhere; 0 if tokens are not counted.
            **values: numbers to show by name ("loss").
        """
        if self._bar.disable:
            return
        self._bar.tokens, self._bar.values = tokens, values
        if self._bar.first is None:
            self._bar.start_from(done, tokens)
        else:
            self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Writes a line that stays, such as "compiling"."""
        if self._bar.disable:
            return
        line = f"{self._bar.desc}: {text}"
        if self._terminal:
            self._bar.write(line, file=self._bar.fp)
        else:
            self._bar.fp.write(line)


class _Bar(tqdm.tqdm):
    """tqdm, with values that are formatted only when they are shown, and the rate of tokens."""

    monitor_interval = 0  # no thread: `miniters` is fixed
    first: tuple[int, int] | None = None
    tokens = 0
    values: dict[str, Any] = {}

    def start_from(self, done: int, tokens: int) -> None:
        """Shows the first update, and measures the rate and the time from now on."""
        self.initial = self.n = self.last_print_n = done
        self.first = (done, tokens)
        self.unpause()
        self.refresh()

    @property
    def format_dict(self) -> dict[str, Any]:
        """See tqdm."""
        fields = super().format_dict
        shown = [f"{name}={float(value):.4g}" for name, value in self.values.items()]
        if self.first and fields["rate"] and self.n > self.first[0]:
            tokens_per_unit = (self.tokens - self.first[1]) / (self.n - self.first[0])
            if tokens_per_unit:
                shown.append(f"{self.format_sizeof(fields['rate'] * tokens_per_unit)} tokens/s")
        return {**fields, "postfix": ", ".join(shown)}


_Bar.set_lock(threading.RLock())  # by default tqdm also makes a lock between processes


class _Lines:
    """A log file: keeps the text that tqdm writes, one report per line, and drops what moves a terminal's cursor."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        text = text.replace(_MOVES_UP, "").strip()
        if text:
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        self._stream.flush()
