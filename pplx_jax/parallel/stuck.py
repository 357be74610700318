"""Which process of a job the others wait for: every process tells process 0 where its main thread is."""

import os
import pathlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

_PACKAGE = f"{pathlib.Path(__file__).parents[1]}{os.sep}"
_OWN = f"{pathlib.Path(__file__).parent}{os.sep}"
_QUIET_SECONDS = 45.0  # until the first report; the others follow after twice the time each
_IDLE_CPU_SECONDS = 1.0  # a process that used less than this since its last move computes nothing
_NAMED = 4  # processes in a report; more are counted


class Place(NamedTuple):
    """Where a process is.

    Attributes:
      moves: number of places that it has reached. All processes reach the same places in the same order.
      name: of the place, such as "pair step 12".
      code: file and line of this package that the main thread runs.
      cpu: seconds of processor time that the process has used, over all threads.
    """

    moves: int
    name: str
    code: str = ""
    cpu: float = 0.0


def here(moves: int, name: str) -> Place:
    """Returns the place of this process; called from another thread than the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and not _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    code = f"{frame.f_code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno}" if frame else ""
    return Place(moves, name, code, time.process_time())


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE) and not file.startswith(_OWN)


class Watch:
    """Finds on process 0 that no process moves on, and who is behind.

    Args:
      names: index -> name of every process.
      stuck_seconds: processes that are behind, do not move and do not compute for this long are stuck; 0: never.
    """

    def __init__(self, names: Mapping[int, str], stuck_seconds: float):
        self._names, self._stuck = names, stuck_seconds
        self._places: dict[int, Place] = {}
        self._then: dict[int, float] = {}  # processor time of each process when any process last moved
        self._moved, self._report = time.monotonic(), _QUIET_SECONDS

    def note(self, index: int, place: Place, now: float) -> None:
        """Records where a process is."""
        before = self._places.get(index)
        self._places[index] = place
        if before is None or before.moves != place.moves:
            self._moved, self._report = now, _QUIET_SECONDS
            self._then = {each: found.cpu for each, found in self._places.items()}

    def report(self, now: float) -> tuple[str, bool] | None:
        """Returns who is behind and whether they are stuck; None if it is not yet time for a report."""
        quiet = now - self._moved
        if not self._places:
            return None
        least = min(place.moves for place in self._places.values())
        behind = {index: place for index, place in sorted(self._places.items()) if place.moves == least}
        idle = all(place.cpu - self._then.get(index, 0.0) < _IDLE_CPU_SECONDS for index, place in behind.items())
        stuck = 0 < self._stuck <= quiet and idle
        if quiet < self._report and not stuck:
            return None
        self._report = 2 * quiet
        told = [
            f"{self._names[index]}, in {place.name} ({place.code or 'outside this package'}, "
            f"{place.cpu - self._then.get(index, 0.0):.1f} s of processor time)"
            for index, place in list(behind.items())[:_NAMED]
        ]
        if len(behind) > _NAMED:
            told.append(f"{len(behind) - _NAMED} more processes there")
        ahead = next((place.name for index, place in self._places.items() if index not in behind), None)
        others = f"; the others wait in {ahead}" if ahead else ""
        return f"no process has moved on for {quiet:.0f} s: waiting for {' and '.join(told)}{others}", stuck
