"""Models and BM25 on every set of a folder of BEIR sets, with intervals, and each model tested against BM25.

    python benchmarks/retrieval.py FOLDER [--model MODEL ...] [--quantization int8] [--output RESULTS] [--json]

A cell is the set's nDCG@10 and half of its 95% bootstrap interval over queries; p is that of the randomisation test
against BM25 on the same queries. With --output each system keeps a results folder there (report.html among it), and a
run that was interrupted goes on.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import skip_absent_tpu
from pplx_jax.evaluation.evaluate import BM25, evaluate_task


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="a BEIR folder, or a folder of those")
    parser.add_argument("--model", action="append", default=[], help="a model folder (repeatable)")
    parser.add_argument("--sets", help="only these sets, with commas between")
    parser.add_argument("--quantization", help="of the models' vectors (default int8)")
    parser.add_argument("--context", action="store_true", help="encode passages together with their neighbours")
    parser.add_argument("--output", type=pathlib.Path, help="a folder for a results folder a system")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, output: pathlib.Path) -> dict[str, Any]:
    """{"systems": {name: {"tasks": [...], "averages": ..., "comparison": against BM25}}}, BM25 first."""
    names = [pathlib.Path(model).resolve().name for model in options.model]
    repeated = next((name for name in names if name == BM25 or names.count(name) > 1), None)
    if repeated is not None:
        raise BadInput(f"two systems are called {repeated}; give folders with different names")
    sets = options.sets.split(",") if options.sets else None
    shared: dict[str, Any] = {"tasks": sets, "truncate": True}
    systems = {BM25: evaluate_task(BM25, options.folder, tasks=sets, output=output / BM25)}
    for name, model in zip(names, options.model, strict=True):
        systems[name] = evaluate_task(
            model,
            options.folder,
            quantization=options.quantization,
            context="with" if options.context else "without",
            output=output / name,
            compare=output / BM25,
            **shared,
        )
    return {"systems": {name: _kept(found, sets) for name, found in systems.items()}}


def _kept(found: dict[str, Any], sets: Sequence[str] | None) -> dict[str, Any]:
    setting = found["settings"][0]
    tasks = [
        {name: task[name] for name in ("task", "queries", "documents", "metrics", "intervals")}
        for task in setting["tasks"]
        if sets is None or task["task"] in sets
    ]
    kept = {"setting": setting["setting"], "tasks": tasks}
    return {**kept, "comparison": found["comparison"]} if "comparison" in found else kept


def format_table(report: dict[str, Any], metric: str = "ndcg@10") -> str:
    """Sets down, systems across, in Markdown."""
    systems = report["systems"]
    rows = [["set", "queries", "documents", *systems]]
    for place, task in enumerate(systems[BM25]["tasks"]):
        cells = [_cell(system, place, metric) for system in systems.values()]
        rows.append([task["task"], f"{task['queries']:,}", f"{task['documents']:,}", *cells])
    rows.append(["mean", "", "", *(_mean(system, metric) for system in systems.values())])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]]) + "\n"


def _cell(system: dict[str, Any], place: int, metric: str) -> str:
    task = system["tasks"][place]
    low, high = task["intervals"][metric]
    p = f", p {system['comparison']['tasks'][place]['p']:.2g}" if "comparison" in system else ""
    return f"{task['metrics'][metric]:.3f} ± {(high - low) / 2:.3f}{p}"


def _mean(system: dict[str, Any], metric: str) -> str:
    values = [task["metrics"][metric] for task in system["tasks"]]
    p = f", p {system['comparison']['mean']['p']:.2g}" if "comparison" in system else ""
    return f"{sum(values) / len(values):.3f}{p}"


def main() -> int:
    options = parse()
    skip_absent_tpu()
    try:
        with contextlib.ExitStack() as stack:
            kept = options.output or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            report = measure(options, kept)
    except BadInput as error:
        print(f"retrieval: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1) if options.json else format_table(report), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
