"""What every page is made of: the document around its body, sections, tiles, lists of facts."""

from collections.abc import Iterable, Mapping
from html import escape

from pplx_jax.reports.style import STYLE


def document(title: str, body: str) -> str:
    """The whole HTML document, with the style sheet inside."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · pplx_jax</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, note: str, content: str) -> str:
    """A heading, a line about it, and what it heads."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{content}</section>"


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """Headline numbers: (name, value, note) each."""
    shown = "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for name, value, note in cells
    )
    return f'<div class="tiles">{shown}</div>' if shown else ""


def facts(values: Mapping[str, object]) -> str:
    """A list of names and values."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items())
    return f'<dl class="pairs">{rows}</dl>'
