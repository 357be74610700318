"""Compiles a program for a TPU that is not here and reads the schedule that its compiler wrote, by kernel."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from pplx_jax.plan.libtpu import ENVIRONMENT

_COLUMNS = "matrix push cross_lane vector pop exp load fill store spill scalar".split()
_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(\w\w)?:\s*>*\s")
_BRANCH = re.compile(r"sbr\.rel \(%\w+\) target = \$region(\d+)")
_TARGET = re.compile(r"Start/End empty region (\d+)\b")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel's schedule.

    Attributes:
      bundles: VLIW bundles in all.
      slots: by unit, slots of a bundle.
      stretches: sizes of the runs of bundles between branches, in order: what is executed or not as one.
      rows: used slots by bundle.
      jumps: from where to where a branch may go forward.
      entry: bundles before the loop over grid steps.
    """

    bundles: int
    slots: dict[str, int]
    stretches: list[tuple[int, int]]
    rows: list[list[int]]
    jumps: list[tuple[int, int]]
    entry: int

    def ends(self) -> list[tuple[int, int]]:
        """Stretches that not every grid step executes: a branch jumps over them, and not over the largest."""
        largest = max(self.stretches, key=lambda stretch: stretch[1] - stretch[0])
        jumps = [jump for jump in self.jumps if not within(largest, jump)]
        return [stretch for stretch in self.stretches if any(within(stretch, jump) for jump in jumps)]

    def skipped_with(self, other: tuple[int, int], running: tuple[int, int]) -> list[tuple[int, int]]:
        """Stretches that a branch jumps over together with `other`, and not with `running`."""
        jumps = [jump for jump in self.jumps if within(other, jump) and not within(running, jump)]
        return [stretch for stretch in self.stretches if any(within(stretch, jump) for jump in jumps)]

    def filled(self, unit: str, first: int = 0, last: int | None = None) -> int:
        """Slots of a unit that are filled in these bundles."""
        return sum(row[_COLUMNS.index(unit)] for row in self.rows[first:last])

    def matrix_share(self, first: int = 0, last: int | None = None) -> float:
        """Share of the matrix units' slots that are filled in these bundles."""
        return self.filled("matrix", first, last) / max(len(self.rows[first:last]), 1) / self.slots["matrix"]

    def spills(self, first: int = 0, last: int | None = None) -> int:
        """Registers spilt in these bundles."""
        return self.filled("spill", first, last)


def within(stretch: tuple[int, int], jump: tuple[int, int]) -> bool:
    """Whether a branch that makes this jump skips all of the stretch."""
    return jump[0] <= stretch[0] and stretch[1] <= jump[1]


def compile_and_read(command: list[str]) -> tuple[dict, dict[str, Kernel]]:
    """Runs a worker that compiles and prints one JSON object; returns that and its kernels' schedules by name.

    Raises:
      RuntimeError: the worker failed; its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true"
        environment = {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": flags}
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(next((line for line in reversed(done.stderr.splitlines()) if "rror" in line), "failed"))
        kernels = {}
        for path in pathlib.Path(folder).glob("*final_hlo-static-per-bundle-utilization.txt"):
            name = re.sub(r"^\d+-", "", path.name).split("-")[0].rsplit(".", 1)[0]
            stem = path.name.split("-final_hlo")[0].rsplit("-", 1)[0]
            texts = [text for text in path.parent.glob(f"{stem}-*-final_bundles.txt") if "schedule" not in text.name]
            if texts:
                kernel = _read(path, texts[0])
                if name not in kernels or kernels[name].bundles < kernel.bundles:  # of several called so, the dearest
                    kernels[name] = kernel
        return json.loads(done.stdout.splitlines()[-1]), kernels


def _read(utilization: pathlib.Path, bundles: pathlib.Path) -> Kernel:
    rows = [
        [int(number) for number in line.split()]
        for line in utilization.read_text().splitlines()
        if re.fullmatch(r"[\d ]+", line.strip()) and len(line.split()) == len(_COLUMNS)
    ]
    slots, rows = rows[0], rows[1:]
    marks, branches, jumps, entry = [0], [], [], 0
    for line in bundles.read_text().splitlines():
        if not (found := _BUNDLE.match(line)):
            continue
        place = int(found.group(1), 16)
        jumps += [(since, place) for region in _TARGET.findall(line) for since, to in branches if to == region]
        branches += [(place, region) for region in _BRANCH.findall(line)]
        if found.group(2) == "LB" and not entry:
            entry = place
        if "sbr.rel" in line or found.group(2):
            marks.append(place)
    return Kernel(
        bundles=len(rows),
        slots=dict(zip(_COLUMNS, slots, strict=True)),
        stretches=list(zip(marks, marks[1:], strict=False)),
        rows=rows,
        jumps=jumps,
        entry=entry,
    )
