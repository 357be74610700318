"""The sections of the page, each a function of the run that gives HTML, or nothing where it has no data."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from pplx_jax.reports import charts
from pplx_jax.reports.frame import section
from pplx_jax.reports.run import (
    METRICS,
    PRECISIONS,
    STAGES,
    UNTRAINED,
    Row,
    Run,
    context_rows,
    numbers,
    result_rows,
    set_rows,
)

_HEADLINE_METRIC = "ndcg@10"


def duration(seconds: float) -> str:
    """Two units at most: 4.2s, 38s, 3m05s, 2h07m, 5d03h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def headline(run: Run) -> str:
    """Title and tiles."""
    rows = result_rows(run.results)
    by_name = {row.name: row for row in rows}
    trained = [by_name[stage] for stage in reversed(STAGES) if stage in by_name and stage not in UNTRAINED]
    total = sum(_seconds(run).values())
    facts = [run.environment.get("device"), f"{duration(total)} in all" if total else None]
    if not trained:
        facts.append("no stage has been evaluated yet")
    tiles = []
    if trained:
        last = trained[0]
        score = last.main(_HEADLINE_METRIC)
        if score is not None:
            tiles.append(_tile(f"nDCG@10, {last.name}, int8", f"{score:.3f}", _against_baselines(score, by_name)))
        recall = last.main("recall@100")
        if recall is not None:
            tiles.append(_tile(f"Recall@100, {last.name}, int8", f"{recall:.1%}", _against_recall(by_name)))
        full, binary = last.value("float", _HEADLINE_METRIC), last.value("binary", _HEADLINE_METRIC)
        if full and binary is not None:
            tiles.append(_tile("Kept at one bit a dimension", f"{binary / full:.1%}", "nDCG@10 of binary over float"))
    gain = _context_gain(run)
    if gain is not None:
        note = "nDCG@10 of the contextual model, chunks in context against chunks alone"
        tiles.append(_tile("Gain from context", _signed(gain), note, gain))
    line = " · ".join(escape(fact) for fact in facts if fact)
    tiles_html = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    return f"<header><h1>{escape(run.name)}</h1><p>{line}</p></header>{tiles_html}"


def retrieval(run: Run) -> str:
    """Bars by stage with BM25's line, and the whole table."""
    rows = result_rows(run.results)
    if not rows:
        return ""
    cards = []
    lexical = next((row for row in rows if row.name == "BM25"), None)
    for metric, title in METRICS.items():
        bars = [
            charts.Bar(row.name, value, _color(row.name))
            for row in rows
            if row is not lexical and (value := row.main(metric)) is not None
        ]
        if not bars:
            continue
        score = lexical.main(metric) if lexical else None
        chart = charts.bars(bars, reference=("BM25", score) if score is not None else None)
        cards.append(_card(title, chart, "int8"))
    grid = f'<div class="grid">{"".join(cards)}</div>' if cards else ""
    note = "The held-out set after each stage, beside BM25 (dashed) and the model before training."
    return section("Retrieval by stage", note, grid + _results_table(rows))


def sets(run: Run) -> str:
    """The int8 number of every stage on each set."""
    titles, body = set_rows(run.results)
    if not body:
        return ""
    head = "".join(f"<th>{escape(title)}</th>" for title in ("", *titles))
    lines = []
    for name, values in body:
        best = max((value for value in values if value is not None), default=0.0)
        kinds = [' class="best"' if value == best > 0 else "" for value in values]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        cells = "".join(f"<td{kind}>{text}</td>" for kind, text in zip(kinds, shown, strict=True))
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    note = "nDCG@10 of int8 on each set; the figures above are their means."
    return section("Set by set", note, f'<div class="card scroll spaced">{table}</div>')


def precision(run: Run) -> str:
    """What int8 and one bit cost."""
    groups = []
    for row in result_rows(run.results):
        if row.is_variant:
            continue
        bars = [
            charts.Bar(name, value, name)
            for name in PRECISIONS
            if (value := row.value(name, _HEADLINE_METRIC)) is not None
        ]
        if len(bars) > 1:
            groups.append((row.name, bars))
    if not groups:
        return ""
    legend = _legend((name, name) for name in PRECISIONS)
    note = "Cosine of the pooled vector, of its int8 integers, and of its signs, from the same forward pass."
    chart = charts.grouped_bars(groups)
    return section("Quantization", note, _card("nDCG@10", legend + f'<div class="scroll">{chart}</div>'))


def losses(run: Run) -> str:
    """A curve for each stage."""
    cards = [
        _card(stage, charts.line(points, _color(stage)), f"{len(points):,} logged steps")
        for stage, points in run.losses.items()
        if len(points) > 1
    ]
    if not cards:
        return ""
    note = "Each stage has its own objective, so the scales are not comparable. Bold: running mean."
    return section("Training loss", note, f'<div class="grid">{"".join(cards)}</div>')


def time(run: Run) -> str:
    """One bar of all phases, compilation hatched, and the same as a table."""
    seconds = {name: value for name, value in _seconds(run).items() if value > 0}
    if not seconds:
        return ""
    compiling = run.compile_seconds
    total = sum(seconds.values())
    segments, lines = [], []
    for name, value in seconds.items():
        compiled = min(compiling.get(name, 0.0), value)
        if compiled:
            segments.append(charts.Segment(f"{name}, compiling", compiled, _color(name), hatched=True))
        segments.append(charts.Segment(name, value - compiled, _color(name)))
        swatch = f'<span class="swatch" style="background-color:var(--{_color(name)})"></span>'
        cells = (duration(value), f"{value / total:.1%}", duration(compiled) if compiled else "")
        lines.append(f"<tr><td>{swatch}{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = (
        '<div class="scroll"><table class="spaced"><thead><tr><th>Phase</th><th>Time</th><th>Share</th>'
        f"<th>Of it compiling</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    note = "Phases in the order they ran." + (" Hatched: compilation." if compiling else "")
    card = _card(f"{duration(total)} in all", charts.stacked(segments) + table)
    return section("Where the time went", note, card)


def corpus(run: Run) -> str:
    """What the model was trained on."""
    pairs = list(_flatten(run.counts))
    return section("Data", "What was kept and what was dropped.", _card("", _pairs(pairs))) if pairs else ""


def configuration(run: Run) -> str:
    """The resolved configuration of each stage, folded."""
    if not run.configs:
        return ""
    parts = []
    for name, text in run.configs.items():
        count = sum(1 for row in text.splitlines() if row.strip() and not row.lstrip().startswith("#"))
        summary = f"<summary>{escape(name)}<span>{count} lines</span></summary>"
        parts.append(f"<details>{summary}<pre>{escape(text.strip())}</pre></details>")
    note = "Every bound value, as resolved when the stage began."
    return section("Configuration", note, f'<div class="card config">{"".join(parts)}</div>')


def environment(run: Run) -> str:
    """Device and versions."""
    pairs = list(_flatten(run.environment))
    return section("Environment", "", _card("", _pairs(pairs))) if pairs else ""


def _against_baselines(score: float, by_name: Mapping[str, Row]) -> str:
    notes = []
    for name in ("BM25", "random"):
        other = by_name[name].main(_HEADLINE_METRIC) if name in by_name else None
        if other is not None:
            kind = "up" if score >= other else "down"
            notes.append(f'<span class="{kind}">{_signed(score - other)}</span> against {name} ({other:.3f})')
    return "<br>".join(notes)


def _against_recall(by_name: Mapping[str, Row]) -> str:
    other = by_name["BM25"].main("recall@100") if "BM25" in by_name else None
    return "" if other is None else f"BM25 {other:.1%}"


def _context_gain(run: Run) -> float | None:
    stage = run.results.get("contextual")
    rows = context_rows(stage) if isinstance(stage, Mapping) else []
    values = [row.main(_HEADLINE_METRIC) for row in rows]
    if len(values) != 2 or None in values:
        return None
    return values[0] - values[1]  # type: ignore[operator]


def _results_table(rows: list[Row]) -> str:
    groups = "".join(f'<th class="group" colspan="{len(PRECISIONS)}">{title}</th>' for title in METRICS.values())
    names = "".join(f"<th>{name}</th>" for _ in METRICS for name in PRECISIONS)
    columns = [(precision, metric) for metric in METRICS for precision in PRECISIONS]
    best = {column: max((row.value(*column) or 0.0 for row in rows), default=0.0) for column in columns}
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.value(*column)
            kind = ' class="best"' if value is not None and value == best[column] > 0 else ""
            cells.append(f"<td{kind}>{'' if value is None else f'{value:.4f}'}</td>")
        kind = ' class="baseline"' if row.is_baseline else ""
        lines.append(f"<tr{kind}><td>{escape(row.name)}</td>{''.join(cells)}</tr>")
    table = (
        f"<table><thead><tr><th></th>{groups}</tr><tr><th></th>{names}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return f'<div class="card scroll spaced">{table}</div>'


def _color(name: str) -> str:
    stage = name.split(",")[0].split("_")[0].split(" ")[0]
    return stage if stage in STAGES and stage not in UNTRAINED else "other"


def _seconds(run: Run) -> dict[str, float]:
    return numbers(run.results.get("seconds"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{label}, ")
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        else:
            yield (
                label,
                f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value),
            )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _tile(name: str, value: str, note: str, sign: float | None = None) -> str:
    kind = "" if sign is None else (" up" if sign >= 0 else " down")
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value{kind}">{value}</div>'
        f'<div class="note">{note}</div></div>'
    )


def _card(title: str, content: str, note: str = "") -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    head = f"<h3>{escape(title)}{small}</h3>" if title else ""
    return f'<div class="card">{head}{content}</div>'


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    parts = (
        f'<span><span class="swatch" style="background-color:var(--{color})"></span>{escape(name)}</span>'
        for name, color in entries
    )
    return f'<div class="legend">{"".join(parts)}</div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="pairs">{lines}</dl>'
