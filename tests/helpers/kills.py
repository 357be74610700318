"""Kills a training with SIGKILL again and again, and compares what it ends with: bits, numbers, example ids.

The training keeps a ledger: a line for every batch that a step consumes, with the ids of its examples as they were
read.
"""

import math
import pathlib
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from helpers import job
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.training.metrics import read_metrics

LEDGER = """
class Ledger(train_stage.HostBatches):
    def __next__(self):
        batch = super().__next__()
        with open(output / "ledger.jsonl", "a") as ledger:
            line = {"pid": os.getpid(), "position": batch.position, "ids": batch.rows.tolist()}
            ledger.write(json.dumps(line) + chr(10))
        return batch

train_stage.HostBatches = Ledger
require_finite = loop._require_finite

def slowly(stage, step, numbers):
    time.sleep(PAUSE)
    require_finite(stage, step, numbers)

loop._require_finite = slowly
output.mkdir(parents=True, exist_ok=True)
print("ready", flush=True)
run(setting, output / "stage", STAGE, steps=STEPS, checkpoint_every_steps=3, log_every_steps=1)
"""


class Kill(NamedTuple):
    """One kill: the last step that was logged, and whether a save was under way."""

    step: int
    saving: bool


def train(setting: pathlib.Path, output: pathlib.Path, stage: str, steps: int, pause: float, cache: Mapping[str, str]):
    """Starts a process that trains; it pauses `pause` seconds at each step, so that it can be killed there."""
    settings = f"STAGE, STEPS, PAUSE = {stage!r}, {steps}, {pause}\n"
    return job.start(settings + LEDGER, setting, output, **cache)


def train_with_kills(
    setting: pathlib.Path,
    output: pathlib.Path,
    stage: str,
    *,
    steps: int,
    kills: int,
    seed: int,
    cache: Mapping[str, str],
    say: Callable[[str], Any] = lambda line: None,
) -> list[Kill]:
    """Trains to the end in spite of `kills` kills.

    One in four comes at a random time, most likely while the process is starting; of the rest every other comes some
    random number of steps later, and every other once a save is under way then. Such a save may be over before the kill
    arrives, so there are more kills until one has met a save.

    Raises:
      AssertionError: the training ended, or failed, before it was killed so often.
    """
    chance = random.Random(seed)
    done: list[Kill] = []
    left: set[str] = set()
    checkpoints, log = output / "stage" / "checkpoints", output / "stage" / "metrics.jsonl"

    def unfinished() -> set[str]:
        return {path.name for path in checkpoints.glob("*tmp*")}

    def saving() -> bool:
        return bool(unfinished() - left)

    while len(done) < kills or not any(kill.saving for kill in done):
        number, left = len(done), unfinished()
        process = train(setting, output, stage, steps, pause=0.05, cache=cache)
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            least, further = len(read_metrics(log)), chance.randint(1, max(steps // kills, 1))
            until = time.monotonic() + chance.uniform(0.0, 3.0) if number % 4 == 3 else math.inf
            while process.poll() is None and time.monotonic() < until:
                rows = len(read_metrics(log))
                least = min(least, rows)  # lines past the checkpoint are dropped once it is restored
                if rows - least >= further and (number % 2 or saving()):
                    break
                time.sleep(0.001)
            assert process.poll() is None, process.communicate()[1][-2000:]
        finally:
            process.kill()
            process.communicate()
        rows = read_metrics(log)
        done.append(Kill(step=rows[-1]["step"] if rows else 0, saving=saving()))
        say(f"kill {number + 1}: {done[-1]}")
    job.finish([train(setting, output, stage, steps, pause=0.0, cache=cache)])
    return done


def ledger(output: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what was consumed, in order of time, without a line that a kill cut short."""
    return read_metrics(output / "ledger.jsonl") if _whole(output) else []


def _whole(output: pathlib.Path) -> bool:
    path = output / "ledger.jsonl"
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.endswith("}")]
    path.write_text("".join(line + "\n" for line in kept))
    return True


def in_the_end(lines: list[dict[str, Any]]) -> list[list[int]]:
    """The ids of the steps that the final parameters are made of, by position.

    Raises:
      AssertionError: a position was read twice with different ids.
    """
    by_position: dict[int, list[int]] = {}
    for line in lines:
        ids = by_position.setdefault(line["position"], line["ids"])
        assert ids == line["ids"], f"position {line['position']} was {ids} and then {line['ids']}"
    return [by_position[position] for position in sorted(by_position)]


def assert_same_run(one: pathlib.Path, two: pathlib.Path, *, examples: int, clock: set[str]) -> None:
    """Same parameters to the last bit, same numbers, same examples: none skipped, none replayed."""
    first, second = (load_params(folder / "stage") for folder in (one, two))
    for path, (a, b) in _pairs(first, second):
        np.testing.assert_array_equal(a, b, err_msg=path)
    rows = [
        [{name: row[name] for name in row.keys() - clock} for row in read_metrics(folder / "stage" / "metrics.jsonl")]
        for folder in (one, two)
    ]
    assert rows[0] == rows[1]
    taken = [in_the_end(ledger(folder)) for folder in (one, two)]
    assert taken[0] == taken[1] and len(taken[0]) == len(rows[0])
    stream = [example for ids in taken[0] for example in ids]
    for start in range(0, len(stream), examples):  # pass after pass over the table, each example once in each
        one_pass = stream[start : start + examples]
        assert len(set(one_pass)) == len(one_pass)


def _pairs(one: Any, two: Any, path: str = ""):
    if not isinstance(one, dict):
        yield path, (one, two)
        return
    assert one.keys() == two.keys()
    for name in one:
        yield from _pairs(one[name], two[name], f"{path}.{name}")
