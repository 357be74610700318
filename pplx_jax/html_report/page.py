"""The page: headline numbers, retrieval, precision, losses, time, data, configuration and environment."""

from html import escape

from pplx_jax.html_report import sections
from pplx_jax.html_report.run import Run
from pplx_jax.html_report.style import STYLE


def render_page(run: Run) -> str:
    """Returns the whole HTML document; a section that has nothing to show is left out."""
    body = "".join(
        section(run)
        for section in (
            sections.headline,
            sections.retrieval,
            sections.sets,
            sections.precision,
            sections.losses,
            sections.time,
            sections.corpus,
            sections.configuration,
            sections.environment,
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.name)} · pplx_jax</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
