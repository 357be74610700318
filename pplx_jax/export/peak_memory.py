"""How much memory a piece of work took, as the kernel counts it."""

import pathlib
import resource
import sys

_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class PeakMemory:
    """Growth of this process's peak resident memory since the object was made.

    On Linux the peak is set back at the start, so that what came before does not count. Elsewhere, or where that
    is not allowed, it is the peak of the process over its peak at the start.
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
        """Bytes."""
        return _peak_bytes() - self._start


def _peak_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
