"""Writes the metrics of a stage to `metrics.jsonl`, and hands them to the writers of `Logging.writers`."""

import json
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

from pplx_jax.core.files import write_text
from pplx_jax.core.peak_memory import process_peak_bytes
from pplx_jax.training.metrics_writers import OpenWriter


class MetricsWriter:
    """Appends to FOLDER/metrics.jsonl, one line per logged step, and calls the other writers.

    An error of another writer stops that writer alone, with a warning.

    Args:
      folder: the stage's folder.
      resume_step: lines of later steps, written before an interruption, are dropped: those steps run again.
      write: whether this process writes; one process of a job does.
      writers: others that take the same numbers; this object closes them.

    Attributes:
      path: of metrics.jsonl.
      last: the numbers of its last line; empty if there is none.
    """

    def __init__(
        self, folder: pathlib.Path, resume_step: int = 0, write: bool = True, writers: Sequence[OpenWriter] = ()
    ):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        self.last = {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}
        self._file, self._writers = None, list(writers)
        if write:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes and flushes the numbers of one step."""
        self.last = values
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        self._each(lambda writer: writer.write(step, dict(values)))

    def close(self) -> None:
        """Closes all."""
        if self._file is not None:
            self._file.close()
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[OpenWriter], None]) -> None:
        for writer in list(self._writers):
            try:
                call(writer)
            except Exception:
                logging.warning("the metrics writer %s fails and is not used further", type(writer), exc_info=True)
                self._writers.remove(writer)


def memory_numbers() -> dict[str, float]:
    """Returns `host_memory_bytes` of this process and, if the backend counts it, `device_memory_peak_bytes`, the peak
    so far of its fullest device."""
    found: dict[str, float] = {}
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        found["host_memory_bytes"] = float(pages * resource.getpagesize())
    except OSError:  # not on Linux
        found["host_memory_bytes"] = float(process_peak_bytes())
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    if known := [peak for peak in peaks if peak is not None]:
        found["device_memory_peak_bytes"] = float(max(known))
    return found


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl` without a last line cut short by a kill; [] if the file is missing."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
