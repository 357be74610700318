"""Kills a training with SIGKILL at random moments, also during saves, and compares the result.

    python benchmarks/kill_and_resume.py [--kills 20] [--stages pair diffusion ...]

Each stage trains the tiny model of the tests twice: once without interruption, and once killed `--kills` times and
  resumed
after each. The parameters, all logged numbers except times, and the ids of the examples of each step must be equal bit
for bit, and no example may be skipped or repeated within a pass over the table. Writes
benchmarks/results/kill_and_resume.json.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import kills, tiny  # noqa: E402
from helpers.clock import CLOCK  # noqa: E402

STEPS_PER_KILL = 8


def measure(stage: str, count: int, folder: pathlib.Path) -> dict[str, object]:
    """Trains one stage twice, the second time with kills; raises AssertionError if the two differ."""
    setting = folder / "tiny"
    setting.mkdir(parents=True)
    tiny.tiny_tables(setting, tiny.tiny_vocabulary(setting))
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    steps = count * STEPS_PER_KILL
    whole, killed = folder / "whole", folder / "killed"
    kills.job.finish([kills.train(setting, whole, stage, steps, 0.0, cache)])
    done = kills.train_with_kills(
        setting,
        killed,
        stage,
        steps=steps,
        kills=count,
        seed=len(stage),
        cache=cache,
        say=lambda line: print(f"{stage}: {line}", file=sys.stderr, flush=True),
    )
    kills.assert_same_run(whole, killed, examples=tiny.EXAMPLES, clock=CLOCK)
    goodput = json.loads((killed / "stage" / "goodput.json").read_text())
    return {
        "steps": steps,
        "kills": len(done),
        "kills_during_a_save": sum(kill.saving for kill in done),
        "last_logged_step_at_each_kill": [kill.step for kill in done],
        "starts": goodput["starts"],
        "batches_read_by_steps": len(kills.ledger(killed)),
        "identical": ["parameters", "metrics", "example ids"],
    }


def main() -> None:
    """Measures all stages, prints the results and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=list(tiny.STAGES), default=list(tiny.STAGES))
    options = parser.parse_args()
    results: dict[str, object] = {}
    for stage in options.stages:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[stage] = measure(stage, options.kills, pathlib.Path(folder))
        print(f"{stage}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        output = ROOT / "benchmarks" / "results" / "kill_and_resume.json"
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
