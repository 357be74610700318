"""A plan as an HTML page: memory and time by kind."""

import pathlib
from typing import Any

from markupsafe import Markup

from pplx_jax.core.files import write_text
from pplx_jax.reports.charts import Bar, bars, colors_of
from pplx_jax.reports.html import render

_GIB = 2**30


def write_picture(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes a self-contained HTML page.

    Raises:
      OSError: the page cannot be written.
    """
    limit = ("limit, GiB", report["hbm_limit_bytes"] / _GIB)
    charts = [("Memory per chip, GiB", _bars({name: size / _GIB for name, size in report["hbm"].items()}, limit))]
    if report["step_seconds_estimate"]:
        step = ("step, s", report["step_seconds_estimate"])
        charts.append(("Estimated time of a step, s", _bars(report["seconds"], step)))
        links: dict[str, float] = {}
        for each in report["collectives"]:
            name = f"{each['kind']}, {each['link']}"
            links[name] = links.get(name, 0.0) + each["seconds"]
        if links:
            charts.append(("Time on the links, s", _bars(links)))
    title = f"{report['stage']} on {report['topology']}"
    page = render("plan.html", title, {"subtitle": "", "charts": charts, "table": report["table"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _bars(values: dict[str, float], reference: tuple[str, float] | None = None) -> Markup:
    colors = colors_of(list(values))
    rows = [Bar(name.replace("_", " "), value, colors[name]) for name, value in values.items()]
    return bars(rows, reference=reference, label_width=190)
