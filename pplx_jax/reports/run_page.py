"""The page of a run: headline numbers, retrieval, precision, losses, time, data, configuration and environment."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pplx_jax.reports import charts
from pplx_jax.reports.html import Change, Row, Tile, duration, render, score, signed
from pplx_jax.reports.run import (
    EVALUATED,
    METRICS,
    PRECISIONS,
    UNTRAINED,
    Run,
    ScoreRow,
    context_rows,
    gain_rows,
    masked_token_rows,
    numbers,
    result_rows,
    set_rows,
)

_METRIC = "ndcg@10"  # of the headline and of the precisions


def render_run(run: Run) -> str:
    """Returns the HTML document; a section without data is left out."""
    rows = result_rows(run.results, run.stages)
    colors = charts.colors_of([stage for stage in run.stages if stage not in UNTRAINED])
    seconds = {name: value for name, value in numbers(run.results.get("seconds")).items() if value > 0}
    total = sum(seconds.values())
    facts = [run.environment.get("device"), f"{duration(total)} in all" if total else None]
    if not _trained(rows):
        facts.append("no stage has been evaluated yet")
    values = {
        "subtitle": " · ".join(fact for fact in facts if fact),
        "tiles": [*_score_tiles(rows), *_context_tiles(run)],
        "precisions": PRECISIONS,
        "metrics": METRICS,
        "score_charts": list(_score_charts(rows, colors)),
        "score_table": _score_table(rows),
        "sets": _sets(run),
        "masked_tokens": [Row(list(row)) for row in masked_token_rows(run.results)],
        "gains": [Row(list(row)) for row in gain_rows(run.results)],
        "precision_chart": _precision_chart(rows),
        "losses": [
            (stage, f"{len(points):,} logged steps", charts.line(points, colors.get(stage, "other")))
            for stage, points in run.losses.items()
            if len(points) > 1
        ],
        "evaluations": [
            (stage, list(_evaluation_charts(curves, colors.get(stage, "other"))))
            for stage, curves in run.evaluations.items()
        ],
        "total": duration(total),
        "time": _time(run, seconds, colors),
        "counts": dict(_flatten(run.counts)),
        "configs": [(name, text.strip(), f"{_bindings(text)} lines") for name, text in run.configs.items()],
        "environment": dict(_flatten(run.environment)),
    }
    return render("run.html", run.name, values)


def _trained(rows: Sequence[ScoreRow]) -> ScoreRow | None:
    """Returns the last model of the run that was scored."""
    return next((row for row in reversed(rows) if not row.is_baseline and not row.is_variant), None)


def _score_tiles(rows: Sequence[ScoreRow]) -> Iterable[Tile]:
    last, by_name = _trained(rows), {row.name: row for row in rows}
    if last is None:
        return
    value = last.main(_METRIC)
    if value is not None:
        changes = [
            Change(signed(value - other), f"against {name} ({other:.3f})", "up" if value >= other else "down")
            for name in ("BM25", *UNTRAINED)
            if name in by_name and (other := by_name[name].main(_METRIC)) is not None
        ]
        yield Tile(f"nDCG@10, {last.name}, int8", f"{value:.3f}", changes=changes)
    recall = last.main("recall@100")
    if recall is not None:
        other = by_name["BM25"].main("recall@100") if "BM25" in by_name else None
        note = "" if other is None else f"BM25 {other:.1%}"
        yield Tile(f"Recall@100, {last.name}, int8", f"{recall:.1%}", note)
    full, binary = last.value("float", _METRIC), last.value("binary", _METRIC)
    if full and binary is not None:
        yield Tile("Binary against float", f"{binary / full:.1%}", "nDCG@10 at one bit per dimension")


def _context_tiles(run: Run) -> Iterable[Tile]:
    for stage in run.stages:
        entry = run.results.get(stage)
        if not isinstance(entry, Mapping):
            continue
        for name, scores in {"": entry, **entry.get("probes", {})}.items():
            found = [row.main(_METRIC) for row in context_rows(stage, scores).values()]
            if len(found) == 2 and found[0] is not None and found[1] is not None:
                gain = found[0] - found[1]
                where = f" on the probe {name}" if name else ""
                note = f"nDCG@10 of {stage}{where}, chunks in context against chunks alone"
                yield Tile("Gain from context", signed(gain), note, "up" if gain >= 0 else "down")


def _score_charts(rows: Sequence[ScoreRow], colors: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    """Yields for each metric its title and a chart of the int8 numbers, with a line for BM25."""
    lexical = next((row for row in rows if row.name == "BM25"), None)
    for metric, title in METRICS.items():
        bars = [
            charts.Bar(row.name, value, colors.get(row.stage, "other"))
            for row in rows
            if row is not lexical and (value := row.main(metric)) is not None
        ]
        if bars:
            reference = lexical.main(metric) if lexical else None
            yield title, charts.bars(bars, reference=None if reference is None else ("BM25", reference))


def _evaluation_charts(
    curves: Mapping[str, Sequence[tuple[float, float]]], color: str
) -> Iterable[tuple[str, str, Any]]:
    """Yields for each metric its name, its best value, and its curve."""
    for name, points in curves.items():
        lowest = name.startswith(f"{EVALUATED}loss/")
        step, value = (min if lowest else max)(points, key=lambda point: point[1])
        yield name.removeprefix(EVALUATED), f"best {value:.4g} at step {step:,.0f}", charts.line(points, color)


def _score_table(rows: Sequence[ScoreRow]) -> list[Row]:
    columns = [(precision, metric) for metric in METRICS for precision in PRECISIONS]
    best = [max((row.value(*column) or 0.0 for row in rows), default=0.0) for column in columns]
    table = []
    for row in rows:
        values = [row.value(*column) for column in columns]
        table.append(Row([row.name, *map(score, values)], _places(values, best), row.is_baseline))
    return table


def _sets(run: Run) -> dict[str, Any]:
    names, sets = set_rows(run.results, run.stages)
    rows = []
    for name, values in sets:
        best = max((value for value in values if value is not None), default=0.0)
        rows.append(Row([name, *map(score, values)], _places(values, [best] * len(values))))
    return {"head": ["", *names], "rows": rows}


def _places(values: Sequence[float | None], best: Sequence[float]) -> list[int]:
    """Returns the places of the best values in a table row, whose first cell is a name."""
    pairs = enumerate(zip(values, best, strict=True), 1)
    return [place for place, (value, highest) in pairs if value is not None and value == highest > 0]


def _precision_chart(rows: Sequence[ScoreRow]) -> Any:
    groups = []
    for row in rows:
        found = {name: row.value(name, _METRIC) for name in PRECISIONS}
        bars = [charts.Bar(name, value, name) for name, value in found.items() if value is not None]
        if len(bars) > 1 and not row.is_variant:
            groups.append((row.name, bars))
    return charts.grouped_bars(groups) if groups else ""


def _time(run: Run, seconds: Mapping[str, float], colors: Mapping[str, str]) -> dict[str, Any]:
    """Returns one bar of all phases, with compilation hatched, and the rows of a table."""
    total = sum(seconds.values())
    segments, rows = [], []
    for name, value in seconds.items():
        color = colors.get(name, "other")
        compiling = min(run.compile_seconds.get(name, 0.0), value)
        if compiling:
            segments.append(charts.Segment(f"{name}, compiling", compiling, color, hatched=True))
        segments.append(charts.Segment(name, value - compiling, color))
        cells = (duration(value), f"{value / total:.1%}", duration(compiling) if compiling else "")
        rows.append({"name": name, "color": color, "cells": cells})
    chart = charts.stacked(segments) if segments else ""
    return {"chart": chart, "rows": rows, "hatched": any(segment.hatched for segment in segments)}


def _bindings(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{label}, ")
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        else:
            whole = isinstance(value, int) and not isinstance(value, bool)
            yield label, f"{value:,}" if whole else str(value)
