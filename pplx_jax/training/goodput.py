"""The share of a stage's wall time that was useful: FOLDER/goodput.json, continued across restarts."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

from pplx_jax.core.files import read_json, write_json

FILE = "goodput.json"


@dataclasses.dataclass
class Goodput:
    """Seconds of a stage by what they were spent on.

    `useful` is the seconds of steps that count. Steps after the checkpoint that a restart resumes from do not count:
    their seconds move to `repeated`. Wall time runs from the first start, so the time between a kill and the next
    start is included, as `stopped`. The rest (restoring, describing, profiling) is `other`.

    Args:
      folder: of the stage.
      useful: seconds of useful steps up to the restored checkpoint; 0 at a fresh start.
      write: whether this process writes the file.
      clock: returns seconds since an epoch that is the same for every start.
    """

    folder: pathlib.Path
    useful: float = 0.0
    write: bool = True
    clock: Callable[[], float] = time.time
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.seconds = dict.fromkeys(("compile", "data_wait", "checkpoint", "evaluation", "repeated", "stopped"), 0.0)
        self.starts, self.first_start = 1, self.clock()
        path = self.folder / FILE
        if path.exists():
            before = read_json(path)
            self.starts += before["starts"]
            self.first_start = before["first_start"]
            self.seconds |= {name: before["seconds"].get(name, 0.0) for name in self.seconds}
            self.seconds["repeated"] += max(before["useful_seconds"] - self.useful, 0.0)
            self.seconds["stopped"] += max(self.clock() - before["last_written"], 0.0)

    def spent(self, what: str, seconds: float) -> None:
        """Adds seconds to "useful", or to one of the losses."""
        if what == "useful":
            self.useful += seconds
        else:
            self.seconds[what] += seconds

    def numbers(self) -> dict[str, float]:
        """Returns what is logged: `goodput` from 0 to 1, and `restarts`."""
        wall = max(self.clock() - self.first_start, 1e-9)
        return {"goodput": min(self.useful / wall, 1.0), "restarts": self.starts - 1}

    def save(self) -> None:
        """Writes the file."""
        if not self.write:
            return
        now = self.clock()
        wall = now - self.first_start
        seconds = {**self.seconds, "other": max(wall - self.useful - sum(self.seconds.values()), 0.0)}
        write_json(
            self.folder / FILE,
            {
                "goodput": self.numbers()["goodput"],
                "starts": self.starts,
                "useful_seconds": self.useful,
                "wall_seconds": wall,
                "seconds": seconds,
                "first_start": self.first_start,
                "last_written": now,
            },
        )
