"""Pages from the Jinja templates in `templates/`: one file each, with inline style and SVG, without scripts and without
anything from the network."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2


class Change(NamedTuple):
    """A difference to something else in a tile; `kind` is "up" or "down"."""

    value: str
    note: str
    kind: str


class Tile(NamedTuple):
    """A headline number; `kind` is "up" or "down" for a gain or a loss, else empty."""

    name: str
    value: str
    note: str = ""
    kind: str = ""
    changes: Sequence[Change] = ()


class Row(NamedTuple):
    """A row of a table; `best` are the places of cells to stress, a `baseline` is shown for comparison."""

    cells: Sequence[str]
    best: Sequence[int] = ()
    baseline: bool = False


def render(template: str, title: str, values: Mapping[str, Any]) -> str:
    """Returns the HTML document of a template, in which every text is escaped."""
    return _environment().get_template(template).render(title=title, **values)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pplx_jax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def score(value: float | None) -> str:
    """Returns a number with four digits, or nothing for None."""
    return "" if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """Returns a number with a sign and three digits."""
    return f"{value:+.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Returns seconds in two units at most: 4.2s, 38s, 3m05s, 2h07m, 5d03h."""
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
