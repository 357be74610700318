"""Compiles a program for a TPU without having one, and reads the schedule that the compiler wrote for each kernel."""

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
    """The schedule of one kernel.

    Attributes:
      bundles: number of VLIW bundles.
      slots: slots of a bundle, by unit.
      blocks: basic blocks (first bundle, end), the code between branches, in order.
      rows: used slots of each bundle.
      jumps: forward branches (from bundle, to bundle).
      entry: bundles before the loop over grid steps.
    """

    bundles: int
    slots: dict[str, int]
    blocks: list[tuple[int, int]]
    rows: list[list[int]]
    jumps: list[tuple[int, int]]
    entry: int

    def ends(self) -> list[tuple[int, int]]:
        """Basic blocks that not every grid step executes: a branch jumps over them, but not over the largest block."""
        largest = max(self.blocks, key=lambda block: block[1] - block[0])
        jumps = [jump for jump in self.jumps if not within(largest, jump)]
        return [block for block in self.blocks if any(within(block, jump) for jump in jumps)]

    def skipped_with(self, other: tuple[int, int], running: tuple[int, int]) -> list[tuple[int, int]]:
        """Basic blocks that a branch jumps over together with `other`, but not with `running`."""
        jumps = [jump for jump in self.jumps if within(other, jump) and not within(running, jump)]
        return [block for block in self.blocks if any(within(block, jump) for jump in jumps)]

    def filled(self, unit: str, first: int = 0, last: int | None = None) -> int:
        """Number of filled slots of a unit in these bundles."""
        return sum(row[_COLUMNS.index(unit)] for row in self.rows[first:last])

    def matrix_share(self, first: int = 0, last: int | None = None) -> float:
        """Filled share of the matrix units' slots in these bundles."""
        return self.filled("matrix", first, last) / max(len(self.rows[first:last]), 1) / self.slots["matrix"]

    def spills(self, first: int = 0, last: int | None = None) -> int:
        """Number of register spills in these bundles."""
        return self.filled("spill", first, last)


def within(block: tuple[int, int], jump: tuple[int, int]) -> bool:
    """Whether this jump skips the whole block."""
    return jump[0] <= block[0] and block[1] <= jump[1]


def compile_and_read(command: list[str]) -> tuple[dict, dict[str, Kernel]]:
    """Runs a worker that compiles and prints one JSON object; returns it and the schedules of its kernels by name.

    Raises:
      RuntimeError: the worker failed, with its last error message.
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
                # Of several kernels with this name, the largest.
                if name not in kernels or kernels[name].bundles < kernel.bundles:
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
        blocks=list(zip(marks, marks[1:], strict=False)),
        rows=rows,
        jumps=jumps,
        entry=entry,
    )
