"""The page of a results folder: every task under every setting, and the main metric by what it depends on."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pplx_jax.reports import charts
from pplx_jax.reports.frame import document, facts, section, tiles

_COLORS = {"int8": "int8", "binary": "binary", "ubinary": "binary"}
_MOST_BARS = 40
_LONGEST_LABEL = 22


def render_evaluation(summary: Mapping[str, Any], outcomes: Sequence[Any]) -> str:
    """Returns the whole HTML document; a section that has nothing to show is left out.

    Args:
        summary: what `evaluation.core.summary.summarize` gives.
        outcomes: `evaluation.core.results.Outcome` of every finished task, for figures query by query.
    """
    settings = [one for one in summary["settings"] if one["tasks"]]
    title = f"{summary['benchmark']} · {summary['model']['model']}"
    if not settings:
        return document(title, f"<header><h1>{escape(title)}</h1><p>No task is finished yet.</p></header>")
    first = [outcome for outcome in outcomes if outcome.setting == settings[0]["setting"]]
    body = (
        _header(summary, settings, title)
        + _tasks(settings)
        + _quantization(settings)
        + _dims(settings)
        + _subsets(first)
        + _lengths(first)
        + _about(summary)
    )
    return document(title, body)


def headline(setting: Mapping[str, Any]) -> tuple[str, float, Sequence[float] | None]:
    """The one figure of a setting: (name, value, interval): its first average, or its only task's main metric."""
    if len(setting["tasks"]) == 1 or not setting["averages"]:
        task = setting["tasks"][0]
        return task["main_metric"], task["main"], task["interval"]
    name = next(iter(setting["averages"]))
    return name, setting["averages"][name], setting["average_intervals"].get(name)


def _header(summary: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], title: str) -> str:
    found = []
    for setting in settings:
        name, value, bounds = headline(setting)
        note = f"95% of resampled queries: {bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
        found.append((f"{name}, {setting['setting']}", f"{value:.4f}", note))
    done, total = len(settings[0]["tasks"]), summary["tasks_of_benchmark"]
    line = f"{done} of {total} tasks · {summary['date']}"
    return f"<header><h1>{escape(title)}</h1><p>{escape(line)}</p></header>{tiles(found)}"


def _tasks(settings: Sequence[Mapping[str, Any]]) -> str:
    names = {task["task"]: task["main_metric"] for setting in settings for task in setting["tasks"]}
    values = [{task["task"]: task for task in setting["tasks"]} for setting in settings]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("task", "metric", *(one["setting"] for one in settings)))
    rows = [
        [name, metric, *(_cell(of.get(name, {}).get("main"), of.get(name, {}).get("interval")) for of in values)]
        for name, metric in names.items()
    ]
    for average in dict.fromkeys(name for setting in settings for name in setting["averages"]):
        cells = (_cell(one["averages"].get(average), one["average_intervals"].get(average)) for one in settings)
        rows.append(["average", average, *cells])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return section("Tasks", "Main metric of each, half of its 95% interval.", f'<div class="card scroll">{table}</div>')


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" ± {(bounds[1] - bounds[0]) / 2:.4f}" if bounds else "")


def _quantization(settings: Sequence[Mapping[str, Any]]) -> str:
    if len(settings) < 2:
        return ""
    rows = [
        charts.Bar(one["setting"][:_LONGEST_LABEL], headline(one)[1], _COLORS.get(one["quantization"], "float"))
        for one in settings
    ]
    card = f'<div class="card">{charts.bars(rows)}</div>'
    return section("Quantization, width and context", f"{headline(settings[0])[0]} under each setting.", card)


def _dims(settings: Sequence[Mapping[str, Any]]) -> str:
    groups: dict[tuple[str, bool], list[tuple[float, float, str]]] = {}
    for one in settings:
        point = (float(one["width"]), headline(one)[1], one["setting"]) if one["width"] else None
        if point:
            groups.setdefault((one["quantization"], one["context"]), []).append(point)
    cards = [
        f'<div class="card"><h3>{escape(form)}{", in context" if context else ""}</h3>'
        f"{charts.scatter(sorted(points), _COLORS.get(form, 'float'))}</div>"
        for (form, context), points in groups.items()
        if len(points) > 1
    ]
    note = "Prefixes of the vectors (MRL), the last point the whole."
    return section("Dimensions", note, f'<div class="grid">{"".join(cards)}</div>') if cards else ""


def _subsets(outcomes: Sequence[Any]) -> str:
    """Bars by subset (languages), and points by the length that a subset or a split names."""
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
    found = ""
    if len(values) > 1:
        means = sorted(((float(np.mean(of)), name) for name, of in values.items()), reverse=True)[:_MOST_BARS]
        bars = charts.bars([charts.Bar(name[-_LONGEST_LABEL:], value, "int8") for value, name in means])
        note = "Main metric of each subset or language, its mean over the tasks that have it."
        found += section("Languages and subsets", note, f'<div class="card">{bars}</div>')
    if len({length for length, _, _ in points}) > 1:
        chart = charts.scatter(sorted(points), "int8")
        found += section("Lengths that the benchmark sets", "In tokens.", f'<div class="card">{chart}</div>')
    return found


def _named_length(name: str) -> float | None:
    match = re.search(r"(?:^|_)(\d{3,6})$", name)
    return float(match[1]) if match else None


def _lengths(outcomes: Sequence[Any]) -> str:
    """The main metric over how long a query's longest relevant document is, in powers of two."""
    bins: dict[int, list[float]] = {}
    for outcome in outcomes:
        for part in outcome.parts:
            values = part.per_query.get(outcome.main_metric, ())
            for value, length in zip(values, part.lengths, strict=False):
                bins.setdefault(max(int(length) - 1, 1).bit_length(), []).append(float(value))
    if len(bins) < 2:
        return ""
    rows = [
        charts.Bar(f"to {1 << power:,} ({len(values):,})", float(np.mean(values)), "int8")
        for power, values in sorted(bins.items())
    ]
    note = "Main metric by the characters of a query's longest relevant document; how many queries in brackets."
    return section("Length", note, f'<div class="card">{charts.bars(rows)}</div>')


def _about(summary: Mapping[str, Any]) -> str:
    model = {name: value for name, value in summary["model"].items() if value is not None}
    return section("Model and software", "", f'<div class="card">{facts({**model, **summary["packages"]})}</div>')
