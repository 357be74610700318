"""The page: headline numbers, retrieval, precision, losses, time, data, configuration and environment."""

from pplx_jax.reports import sections
from pplx_jax.reports.frame import document
from pplx_jax.reports.run import Run


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
    return document(run.name, body)
