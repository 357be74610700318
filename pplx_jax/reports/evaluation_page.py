"""The page of a results folder: all tasks under all settings, and the main metric by width, subset and length."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pplx_jax.reports import charts
from pplx_jax.reports.html import Row, Tile, render, score

_COLORS = {"int8": "int8", "binary": "binary", "ubinary": "binary"}
_MOST_BARS = 40


def render_evaluation(summary: Mapping[str, Any], outcomes: Sequence[Any]) -> str:
    """Returns the HTML document; a section without data is left out.

    Args:
        summary: what `evaluation.core.summary.summarize` returns.
        outcomes: an `evaluation.core.results.Outcome` per finished task, for values query by query.
    """
    title = f"{summary['benchmark']} · {summary['model']['model']}"
    settings = [one for one in summary["settings"] if one["tasks"]]
    done = len(settings[0]["tasks"]) if settings else 0
    first = [outcome for outcome in outcomes if settings and outcome.setting == settings[0]["setting"]]
    model = {name: value for name, value in summary["model"].items() if value is not None}
    subsets, named_lengths = _by_subset(first)
    values = {
        "subtitle": f"{done} of {summary['tasks_of_benchmark']} tasks · {summary['date']}"
        if settings
        else "No task is finished yet.",
        "tiles": [_tile(setting) for setting in settings],
        "head": ["task", "metric", *(one["setting"] for one in settings)],
        "rows": _tasks(settings),
        "headline": headline(settings[0])[0] if settings else "",
        "settings_chart": _settings_chart(settings),
        "dims_charts": list(_dims_charts(settings)),
        "subsets_chart": _subsets_chart(subsets),
        "subsets_note": "Main metric of each subset or language, its mean over the tasks that have it."
        + (f" The best {_MOST_BARS} of {len(subsets)}." if len(subsets) > _MOST_BARS else ""),
        "named_lengths_chart": _named_lengths_chart(named_lengths),
        "lengths_chart": _lengths_chart(first),
        "about": {**model, **summary["packages"]},
    }
    return render("evaluation.html", title, values)


def headline(setting: Mapping[str, Any]) -> tuple[str, float, Sequence[float] | None]:
    """Returns name, value and interval of a setting's first average, or of its only task's main metric."""
    if len(setting["tasks"]) == 1 or not setting["averages"]:
        task = setting["tasks"][0]
        return task["main_metric"], task["main"], task["interval"]
    name = next(iter(setting["averages"]))
    return name, setting["averages"][name], setting["average_intervals"].get(name)


def _tile(setting: Mapping[str, Any]) -> Tile:
    name, value, bounds = headline(setting)
    note = f"95% of resampled queries: {bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
    return Tile(f"{name}, {setting['setting']}", f"{value:.4f}", note)


def _tasks(settings: Sequence[Mapping[str, Any]]) -> list[Row]:
    names = {task["task"]: task["main_metric"] for setting in settings for task in setting["tasks"]}
    values = [{task["task"]: task for task in setting["tasks"]} for setting in settings]
    rows = [
        [name, metric, *(_cell(of.get(name, {}).get("main"), of.get(name, {}).get("interval")) for of in values)]
        for name, metric in names.items()
    ]
    for average in dict.fromkeys(name for setting in settings for name in setting["averages"]):
        cells = (_cell(one["averages"].get(average), one["average_intervals"].get(average)) for one in settings)
        rows.append(["average", average, *cells])
    return [Row(cells) for cells in rows]


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    return score(value) + (f" ± {(bounds[1] - bounds[0]) / 2:.4f}" if bounds and value is not None else "")


def _settings_chart(settings: Sequence[Mapping[str, Any]]) -> Markup | None:
    if len(settings) < 2:
        return None
    rows = [
        charts.Bar(one["setting"][: charts.LONGEST_LABEL], headline(one)[1], _COLORS.get(one["quantization"], "float"))
        for one in settings
    ]
    return charts.bars(rows)


def _dims_charts(settings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Markup]]:
    groups: dict[tuple[str, bool], list[tuple[float, float, str]]] = {}
    for one in settings:
        if one["width"]:
            point = (float(one["width"]), headline(one)[1], one["setting"])
            groups.setdefault((one["quantization"], one["context"]), []).append(point)
    for (form, context), points in groups.items():
        if len(points) > 1:
            title = f"{form}, in context" if context else form
            yield title, charts.scatter(sorted(points), _COLORS.get(form, "float"))


def _by_subset(outcomes: Sequence[Any]) -> tuple[dict[str, list[float]], list[tuple[float, float, str]]]:
    """Returns the main metric by subset (languages), and points over the length in the name of a subset or split."""
    values: dict[str, list[float]] = {}
    points = []
    for outcome in outcomes:
        several = len(outcome.parts) > 1
        for part in outcome.parts if several else ():
            value = part.metrics[outcome.main_metric]
            length = _named_length(part.subset) or _named_length(part.split)
            if length:
                points.append((length, value, f"{outcome.task}, {part.split}, {part.subset}"))
            else:
                values.setdefault(part.subset, []).append(value)
    return values, points


def _subsets_chart(values: Mapping[str, list[float]]) -> Markup | None:
    if len(values) < 2:
        return None
    means = sorted(((float(np.mean(of)), name) for name, of in values.items()), reverse=True)[:_MOST_BARS]
    return charts.bars([charts.Bar(name[-charts.LONGEST_LABEL :], value, "int8") for value, name in means])


def _named_lengths_chart(points: Sequence[tuple[float, float, str]]) -> Markup | None:
    return charts.scatter(sorted(points), "int8") if len({length for length, _, _ in points}) > 1 else None


def _named_length(name: str) -> float | None:
    match = re.search(r"(?:^|_)(\d{3,6})$", name)
    return float(match[1]) if match else None


def _lengths_chart(outcomes: Sequence[Any]) -> Markup | None:
    """Returns bars of the main metric over the length of a query's longest relevant document, in powers of two."""
    bins: dict[int, list[float]] = {}
    for outcome in outcomes:
        for part in outcome.parts:
            values = part.per_query.get(outcome.main_metric, ())
            for value, length in zip(values, part.lengths, strict=False):
                bins.setdefault(max(int(length) - 1, 1).bit_length(), []).append(float(value))
    if len(bins) < 2:
        return None
    return charts.bars(
        [
            charts.Bar(f"to {1 << power:,} ({len(values):,})", float(np.mean(values)), "int8")
            for power, values in sorted(bins.items())
        ]
    )
