"""Progress on standard error, by tqdm: a bar on a terminal, one line every few seconds in a log file."""

import sys
import threading
from typing import Any, TextIO

import tqdm


class Progress:
    """Reports how much of a long task is done, at what rate, and how long the rest takes.

        with Progress("pair", total=600, unit="step") as progress:
            for step in range(1, 601):
                ...
                progress.update(step, loss=loss, tokens=tokens_so_far)

    Rate and time start with the first update, so that compiling the first step does not count; the last line has those
    of all of it. Values may be device arrays: they are fetched only when they are shown.

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
        terminal = stream.isatty()
        done, rest = ("{n_fmt}", "") if total is None else ("{n_fmt}/{total_fmt}", "<{remaining}")
        self._bar = _Bar(
            desc=label,
            total=total,
            unit=unit,
            initial=start,
            file=stream if terminal else _Lines(stream),
            mininterval=interval if interval is not None else (0.2 if terminal else 5.0),
            miniters=1,
            bar_format=("{l_bar}{bar}| " if terminal and total else "{desc}: ")
            + f"{{unit}} {done} [{{elapsed}}{rest}, {{rate_fmt}}{{postfix}}]",
            dynamic_ncols=True,
            disable=not enabled,
        )
        self._start, self._opened = start, getattr(self._bar, "start_t", 0.0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._bar.initial, self._bar.start_t = self._start, self._opened
        self._bar.close()

    def update(self, done: int, *, tokens: int = 0, **values: Any) -> None:
        """Sets how much is done.

        Args:
            done: units done so far, including those of an earlier run.
            tokens: tokens done so far, counted from anywhere; 0 if tokens are not counted.
            **values: numbers to show by name ("loss").
        """
        bar = self._bar
        bar.tokens, bar.values = tokens, values
        if bar.first_tokens is None:
            bar.first_tokens = tokens
            bar.initial = bar.n = bar.last_print_n = done
            bar.unpause()
            bar.refresh()
        bar.update(done - bar.n)

    def note(self, text: str) -> None:
        """Writes a line that stays, such as "compiling"."""
        if not self._bar.disable:
            self._bar.write(f"{self._bar.desc}: {text}", file=self._bar.fp)


class _Bar(tqdm.tqdm):
    """tqdm, with values that are formatted only when they are shown, and the rate of tokens."""

    monitor_interval = 0  # no thread: `miniters` is fixed
    first_tokens: int | None = None
    tokens = 0
    values: dict[str, Any] = {}

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields that tqdm formats."""
        fields = super().format_dict
        shown = [f"{name}={float(value):.4g}" for name, value in self.values.items()]
        tokens, units = self.tokens - (self.first_tokens or 0), self.n - self.initial
        if tokens and units and fields["rate"]:
            shown.append(f"{self.format_sizeof(fields['rate'] * tokens / units)} tokens/s")
        return {**fields, "postfix": ", ".join(shown)}


_Bar.set_lock(threading.RLock())  # by default tqdm also makes a lock between processes


class _Lines:
    """A log file for tqdm: a line per report, without the characters that move a terminal's cursor."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        if text := text.replace("\x1b[A", "").strip():
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        self._stream.flush()
