"""A plan as a page: memory and time by kind."""

import itertools
import pathlib
from html import escape
from typing import Any

from pplx_jax.core.files import write_text
from pplx_jax.reports.charts import Bar, bars
from pplx_jax.reports.style import STYLE

_GIB = 2**30
_COLORS = ("diffusion", "pair", "contextual", "triplet", "merged", "other")


def write_picture(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes a self-contained HTML page.

    Raises:
      OSError: it cannot be written.
    """
    limit = ("limit, GiB", report["hbm_limit_bytes"] / _GIB)
    cards = [_card("Memory a chip, GiB", _bars({n: s / _GIB for n, s in report["hbm"].items()}, limit))]
    if report["step_seconds_estimate"]:
        step = ("step, s", report["step_seconds_estimate"])
        cards.append(_card("Time of a step, estimated, s", _bars(report["seconds"], step)))
        links: dict[str, float] = {}
        for each in report["collectives"]:
            name = f"{each['kind']}, {each['link']}"
            links[name] = links.get(name, 0.0) + each["seconds"]
        if links:
            cards.append(_card("Time on the links, s", _bars(links)))
    title = f"{report['stage']} on {report['topology']}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><header><h1>{escape(title)}</h1></header>"
        f'<div class="grid spaced">{"".join(cards)}</div><pre class="spaced">{escape(report["table"])}</pre>'
        "</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _card(title: str, chart: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{chart}</div>'


def _bars(values: dict[str, float], reference: tuple[str, float] | None = None) -> str:
    colors = itertools.cycle(_COLORS)
    rows = [Bar(name.replace("_", " "), value, next(colors)) for name, value in values.items()]
    return bars(rows, reference=reference, label_width=190)
