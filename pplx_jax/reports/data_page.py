"""The page of `pplx-jax data report`: headline numbers, fill by stage, languages, and samples by source."""

from collections.abc import Mapping
from typing import Any

from pplx_jax.data.quality import report_text
from pplx_jax.reports import charts
from pplx_jax.reports.html import Row, Tile, render

_SHOWN_LANGUAGES = 40


def render_data_page(report: Mapping[str, Any], *, name: str) -> str:
    """Returns the HTML document.

    Args:
        report: what `report_corpus` writes as report.json.
        name: of the run.
    """
    fill = report["fill_by_stage"]
    colors = charts.colors_of(list(fill))
    bars = [charts.Bar(stage, one["fill"], colors[stage]) for stage, one in fill.items()]
    values = {
        "subtitle": report_text.extent(report),
        "tiles": [Tile(*headline) for headline in report_text.headlines(report)],
        "fill_chart": charts.bars(bars) if bars else "",
        "packed": [(stage, one["sample"]) for stage, one in fill.items()],
        "languages": _languages(report["languages"]),
        "stages": {
            stage: {source: _source(one) for source, one in sources.items()}
            for stage, sources in report["sources"].items()
        },
    }
    return render("data.html", f"{name}: data", values)


def _languages(counts: Mapping[str, int]) -> dict[str, str]:
    """Returns the first languages, and how many others there are with how many examples."""
    shown = {name: f"{count:,}" for name, count in list(counts.items())[:_SHOWN_LANGUAGES]}
    rest = list(counts.values())[_SHOWN_LANGUAGES:]
    if rest:
        shown[f"{len(rest)} more"] = f"{sum(rest):,}"
    return shown


def _source(one: Mapping[str, Any]) -> dict[str, Any]:
    lengths = {field: values for field, values in one["token_lengths"].items() if values}
    titles = list(next(iter(lengths.values()), ()))
    return {
        "counts": report_text.counts(one),
        "head": ["Tokens of", *titles],
        "lengths": [Row([field, *(f"{value:,}" for value in values.values())]) for field, values in lengths.items()],
        "texts": list(report_text.texts(one)),
    }
