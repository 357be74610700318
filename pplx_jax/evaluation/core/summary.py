"""Summarizes outcomes: metrics with intervals by setting and task, averages, and the software versions."""

import dataclasses
import datetime
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tabulate

from pplx_jax.core.packages import installed_versions
from pplx_jax.evaluation.core import significance
from pplx_jax.evaluation.core.benchmark import Benchmark, Part, main_value
from pplx_jax.evaluation.core.results import Outcome, Results
from pplx_jax.evaluation.scoring.system import Settings

_PACKAGES = ("pplx-jax", "jax", "numpy", "mteb", "datasets", "bm25s", "sentence-transformers", "transformers", "torch")


def summarize(results: Results, benchmark: Benchmark) -> dict[str, Any]:
    """Returns the content of results.json.

    Returns:
        {"benchmark", "model": the fields of `results.Subject`, "date", "packages": {name: version},
        "tasks_of_benchmark": number of tasks,
        "settings": [{"setting", "quantization", "dims", "context", "truncate", "width": number of compared dimensions,
            "complete": whether every task is finished, "averages": {name: value},
            "average_intervals": {name: (low, high)},
            "tasks": [{"task", "main_metric", "main", "interval", "seconds", "metrics", "intervals", "queries",
                "documents", "parts": [{"split", "subset", "metrics", "queries", "documents"}]}]}]}.
        The metrics of a task are means over its parts. A task without values per query has no intervals.
    """
    order = {task.name: position for position, task in enumerate(benchmark.tasks)}
    settings = []
    for name in dict.fromkeys(outcome.setting for outcome in results.outcomes):
        outcomes = [one for one in results.outcomes if one.setting == name and one.task in order]
        outcomes.sort(key=lambda one: order[one.task])
        resampled = {one.task: _resampled(one) for one in outcomes}
        averages = benchmark.averages({one.task: one.parts for one in outcomes})
        held = outcomes[0].settings if outcomes else Settings()
        entry = {
            "setting": name,
            **dataclasses.asdict(held),
            "width": held.dims or results.subject.dims,
            "complete": len(outcomes) == len(order),
            "averages": averages,
            "average_intervals": _average_intervals(averages, benchmark, resampled),
            "tasks": [_task(one, resampled[one.task]) for one in outcomes],
        }
        settings.append(entry)
    return {
        "benchmark": benchmark.name,
        "model": dataclasses.asdict(results.subject),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": installed_versions(_PACKAGES),
        "tasks_of_benchmark": len(order),
        "settings": settings,
    }


def _task(outcome: Outcome, resampled: Sequence[Sequence[Part]]) -> dict[str, Any]:
    parts = outcome.parts
    names = [name for name in parts[0].metrics if all(name in part.metrics for part in parts)]
    intervals = {
        name: significance.interval(np.array([main_value(drawn, name) for drawn in resampled]))
        for name in names
        if resampled and all(name in part.per_query for part in parts)
    }
    return {
        "task": outcome.task,
        "main_metric": outcome.main_metric,
        "main": main_value(parts, outcome.main_metric),
        "interval": intervals.get(outcome.main_metric),
        "seconds": outcome.seconds,
        "metrics": {name: main_value(parts, name) for name in names},
        "intervals": intervals,
        "queries": _distinct_queries(parts),
        "documents": max(part.documents for part in parts),
        "parts": [
            {
                "split": part.split,
                "subset": part.subset,
                "metrics": dict(part.metrics),
                "queries": part.queries,
                "documents": part.documents,
            }
            for part in parts
        ],
    }


def _distinct_queries(parts: Sequence[Part]) -> int:
    shared = {query for part in parts if part.shares_queries for query in part.query_ids}
    return len(shared) + sum(part.queries for part in parts if not part.shares_queries)


def _resampled(outcome: Outcome) -> list[list[Part]]:
    """Returns the parts with bootstrapped metrics, once per resample; [] if a part has no values per query."""
    if not all(part.per_query for part in outcome.parts):
        return []
    drawn = []
    for part in outcome.parts:
        seed = zlib.crc32(f"{outcome.task}/{part.split}/{part.subset}".encode())
        means = significance.resampled_means(np.stack(list(part.per_query.values()), axis=1), seed=seed)
        names = list(part.per_query)
        drawn.append([dataclasses.replace(part, metrics=dict(zip(names, row, strict=True))) for row in means.tolist()])
    return [list(parts) for parts in zip(*drawn, strict=True)]


def _average_intervals(
    averages: Mapping[str, float], benchmark: Benchmark, resampled: Mapping[str, list[list[Part]]]
) -> dict[str, tuple[float, float]]:
    if not all(resampled.values()):
        return {}
    draws = [
        benchmark.averages({task: parts[draw] for task, parts in resampled.items()})
        for draw in range(significance.INTERVAL_RESAMPLES)
    ]
    return {name: significance.interval(np.array([draw[name] for draw in draws])) for name in averages}


def format_table(summary: Mapping[str, Any]) -> str:
    """Formats the main metrics as a Markdown table: one row per task, one column per setting, averages last."""
    settings = summary["settings"]
    tasks = {one["task"]: one["main_metric"] for setting in settings for one in setting["tasks"]}
    by_task = [{one["task"]: one for one in setting["tasks"]} for setting in settings]
    headers = ["task", "metric", *(one["setting"] for one in settings)]
    rows = []
    for task, metric in tasks.items():
        found = [of.get(task, {}) for of in by_task]
        rows.append([task, metric, *(_cell(one.get("main"), one.get("interval")) for one in found)])
    if len(tasks) > 1:
        for average in dict.fromkeys(name for setting in settings for name in setting["averages"]):
            cells = [_cell(one["averages"].get(average), one["average_intervals"].get(average)) for one in settings]
            rows.append(["average", average, *cells])
    alignment = ["left", "left", *["right"] * len(settings)]
    return tabulate.tabulate(rows, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True) + "\n"


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "")
