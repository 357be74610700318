"""The page of `pplx-jax data report`: tiles, fill by stage, and a card a source with its samples."""

from collections.abc import Mapping
from html import escape
from typing import Any

from pplx_jax.data.quality import report_text
from pplx_jax.reports import charts
from pplx_jax.reports.frame import document, facts, section, tiles

_SHOWN_LANGUAGES = 40


def render_data_page(report: Mapping[str, Any], *, name: str) -> str:
    """Returns the whole HTML document.

    Args:
        report: what `report_corpus` writes as report.json.
        name: of the run.
    """
    body = _header(report, name) + _fill(report) + _languages(report)
    for stage, sources in report["sources"].items():
        cards = "".join(_source(stage, source, one) for source, one in sources.items())
        body += section(stage, "Sources of this stage.", cards)
    return document(f"{name} · data", body)


def _header(report: Mapping[str, Any], name: str) -> str:
    header = f"<header><h1>{escape(name)}: data</h1><p>{escape(report_text.extent(report))}</p></header>"
    return header + tiles(report_text.headlines(report))


def _fill(report: Mapping[str, Any]) -> str:
    stages = report["fill_by_stage"]
    if not stages:
        return ""
    bars = charts.bars([charts.Bar(stage, one["fill"], stage) for stage, one in stages.items()])
    samples = "".join(_folded(f"A packed row: {stage}", one["sample"]) for stage, one in stages.items())
    note = "Share of the cells of packed rows that hold a token, in batches as training packs them."
    return section("Fill", note, f'<div class="card">{bars}</div><div class="card config spaced">{samples}</div>')


def _languages(report: Mapping[str, Any]) -> str:
    languages = list(report["languages"].items())[:_SHOWN_LANGUAGES]
    if not languages:
        return ""
    counts = facts({name: f"{count:,}" for name, count in languages})
    return section("Languages", "Examples of each.", f'<div class="card">{counts}</div>')


def _source(stage: str, name: str, one: Mapping[str, Any]) -> str:
    folded = "".join(_folded(title, text) for title, text in report_text.texts(one))
    return (
        f'<div class="card spaced"><h3>{escape(name)}<small>{escape(stage)}</small></h3>'
        f"{facts(report_text.counts(one))}{_lengths(one['token_lengths'])}{folded}</div>"
    )


def _lengths(lengths: Mapping[str, Mapping[str, Any]]) -> str:
    lengths = {field: values for field, values in lengths.items() if values}
    if not lengths:
        return ""
    titles = list(next(iter(lengths.values())))
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = "".join(
        f"<tr><td>{escape(field)}</td>{''.join(f'<td>{value:,}</td>' for value in values.values())}</tr>"
        for field, values in lengths.items()
    )
    table = f"<table><thead><tr><th>Tokens of</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll spaced">{table}</div>'


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else ""
