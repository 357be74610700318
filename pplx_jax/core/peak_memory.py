"""Measures peak memory with the counters of the kernel."""

import pathlib
import resource
import sys

_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class PeakMemory:
    """Growth of this process's peak resident memory since the object was made.

    On Linux the counter is reset at the start, so that earlier peaks do not count. If that is not possible, the result
    is the growth of the process's peak.
    """

    def __init__(self):
        self._start = _peak_bytes()
        try:
            _CLEAR.write_text("5")
            self._start = _peak_bytes()
        except OSError:
            pass

    @property
    def growth(self) -> int:
        """Growth in bytes."""
        return _peak_bytes() - self._start


def _peak_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return process_peak_bytes()


def process_peak_bytes() -> int:
    """Returns the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
