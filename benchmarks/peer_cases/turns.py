"""Times several implementations in turn, each in a process of its own.

A process opens its implementation, makes a first pass (compilation included) and says what it computed. If that agrees
with ours, all processes wait, and take turns: one pass of the first, one of the second, and so on. So a load of the
machine that comes and goes meets all of them. Each process reports its own peak memory at the end.
"""

import contextlib
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

HERE = pathlib.Path(__file__)
LEAST_PASSES = 5


class Side(Protocol):
    """One implementation of a case, opened."""

    def run(self) -> Any:
        """Does the work once; waits for its end."""
        ...

    def check(self) -> dict[str, Any]:
        """What it computes, to compare with ours: numbers, or the path of an array."""
        ...


class Different(Exception):
    """Two implementations do not compute the same."""


def measure(
    part: str,
    case: dict[str, Any],
    names: list[str],
    compare: Callable[[Mapping[str, Any], Mapping[str, Any], str], dict[str, Any]],
    passes: int,
) -> dict[str, dict[str, Any]]:
    """Measures implementations of a case.

    Args:
      part: the module whose `open_side` opens them.
      case: what the module needs, as JSON can hold it.
      names: the implementations; the others are compared with the first.
      compare: (what the first computes, what NAME computes, NAME) -> how they agree; raises `Different` if they do not.
      passes: timed passes of each.

    Returns:
      By name: `load_seconds` (imports and opening), `first_seconds`, `seconds` (all), `least_seconds`,
      `median_seconds`, `peak_bytes`, `agreement`; or `error` alone.
    """
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, _Process] = {}
        for name in names:
            try:
                process = stack.enter_context(_process(part, name, case))
                opened = process.ask("open")
                computed = opened.pop("check")
                ours = computed if not running else running[names[0]].computed
                found[name] = opened | {"agreement": compare(ours, computed, name), "seconds": []}
                process.computed = computed
                running[name] = process
            except (Different, RuntimeError) as error:
                found[name] = {"error": str(error)}
                if name == names[0]:
                    raise RuntimeError(f"{part}, {name}: {error}") from None
        for _ in range(passes):
            for name, process in running.items():
                found[name]["seconds"].append(process.ask("run")["seconds"])
        for name, process in running.items():
            found[name]["peak_bytes"] = process.ask("end")["peak_bytes"]
    for figures in found.values():
        if seconds := figures.get("seconds"):
            figures |= {"least_seconds": min(seconds), "median_seconds": statistics.median(seconds)}
    return found


def table_row(found: dict[str, dict[str, Any]], facts: dict[str, Any], unit: str = "tokens") -> dict[str, Any]:
    """Returns a case as `--json` prints it.

    Args:
      found: what `measure` returns; names that start with "ours" are ours, the others peers.
      facts: of the case.
      unit: the fact of which the row gives so many per second.
    """
    rates = {name: facts[unit] / each["least_seconds"] for name, each in found.items() if "error" not in each}
    peers = [rate for name, rate in rates.items() if not name.startswith("ours")]
    timed = {name: found[name] for name in rates}
    report: dict[str, Any] = {name: float(f"{rate:.5g}") for name, rate in rates.items()}
    if peers and "ours" in rates:
        report["ratio"] = round(rates["ours"] / max(peers), 3)
    report["peak_bytes"] = {name: each["peak_bytes"] for name, each in timed.items()}
    report["seconds"] = {
        name: {key: round(each[f"{key}_seconds"], 4) for key in ("load", "first", "least", "median")}
        for name, each in timed.items()
    }
    report["agreement"] = {name: each["agreement"] for name, each in timed.items()}
    errors = {name: each["error"] for name, each in found.items() if "error" in each}
    return report | facts | {"unit": f"{unit} per second"} | ({"errors": errors} if errors else {})


def chosen(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Returns the wanted implementations, after the first one, with which the others are compared."""
    first, *others = names
    return [first, *(name for name in others if name in set(wanted))]


class _Process:
    """A worker: asks in lines, answers in JSON lines."""

    def __init__(self, started: subprocess.Popen):
        self._started = started
        self.computed: Mapping[str, Any] = {}

    def ask(self, word: str) -> dict[str, Any]:
        assert self._started.stdin and self._started.stdout
        try:
            self._started.stdin.write(f"{word}\n")
            self._started.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        line = self._started.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self._started.wait()} at {word!r}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


@contextlib.contextmanager
def _process(part: str, name: str, case: dict[str, Any]) -> Iterator[_Process]:
    command = [sys.executable, os.fspath(HERE), part, name, json.dumps(case)]
    root = os.fspath(HERE.parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"},
    ) as started:
        try:
            yield _Process(started)
        finally:
            started.kill()


def peak_bytes() -> int:
    """The most memory of this process; `getrusage` would start from its parent's."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def worker(part: str, name: str, case: dict[str, Any]) -> None:
    """Answers the questions of `measure` on standard output; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        started, side = time.perf_counter(), None
        for word in map(str.strip, sys.stdin):
            try:
                if word == "open":
                    side = importlib.import_module(part).open_side(name, case)
                    loaded = time.perf_counter()
                    side.run()
                    first = time.perf_counter()
                    times = {"load_seconds": loaded - started, "first_seconds": first - loaded}
                    answer: dict[str, Any] = times | {"check": side.check()}
                elif word == "run" and side is not None:
                    began = time.perf_counter()
                    side.run()
                    answer = {"seconds": time.perf_counter() - began}
                else:
                    answer = {"peak_bytes": peak_bytes()}
            except Exception as error:  # the other implementations go on
                answer = {"error": f"{type(error).__name__}: {error}"[:500]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    sys.path[0] = os.fspath(HERE.parents[1])
    from peer_cases import turns  # the one that other modules import

    turns.worker(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
