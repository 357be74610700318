"""A report on mined negatives for people: counts, and sample queries with their positive and negatives."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pplx_jax.core.files import atomic_path
from pplx_jax.reports.style import STYLE

_SHOWN = 600  # characters of a text


@dataclasses.dataclass(frozen=True)
class Sample:
    """A query with its positive (text, cosine) and its negatives (text, rank, cosine), best first."""

    query: str
    positive: tuple[str, float]
    negatives: Sequence[tuple[str, int, float]]


def write_mining_report(
    folder: pathlib.Path, settings: Mapping[str, Any], counts: Mapping[str, Any], samples: Sequence[Sample]
) -> None:
    """Writes report.txt and report.html to the folder."""
    for name, render in (("report.txt", _text), ("report.html", _page)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(render(settings, counts, samples), encoding="utf-8")


def _text(settings: Mapping[str, Any], counts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    lines = [f"{name.replace('_', ' ')}: {_number(value)}" for name, value in counts.items()]
    lines += ["", "settings: " + ", ".join(f"{name}={value}" for name, value in settings.items())]
    for sample in samples:
        text, cosine = sample.positive
        lines += ["", f"query     {_shown(sample.query)}", f"positive  {cosine:.3f}        {_shown(text)}"]
        lines += [f"negative  {cosine:.3f} #{rank:<5} {_shown(text)}" for text, rank, cosine in sample.negatives]
    return "\n".join(lines) + "\n"


def _page(settings: Mapping[str, Any], counts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    facts = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_number(value))}</dd></div>"
        for name, value in (*counts.items(), *settings.items())
    )
    cards = "".join(map(_card, samples))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Hard negatives · pplx_jax</title><style>{STYLE}</style></head><body><main>"
        "<header><h1>Hard negatives</h1><p>If a negative answers its query, the window begins too early or the "
        "ceiling is too high.</p></header>"
        f'<section><h2>Counts and settings</h2><div class="card"><dl class="pairs">{facts}</dl></div></section>'
        f"<section><h2>Samples</h2><p>A seeded sample. Cosine of INT8 embeddings, and rank among all documents."
        f"</p>{cards}</section></main></body></html>\n"
    )


def _card(sample: Sample) -> str:
    text, cosine = sample.positive
    rows = [("positive", cosine, text)]
    rows += [(f"rank {rank}", cosine, text) for text, rank, cosine in sample.negatives]
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{cosine:.3f}</td><td><pre>{escape(_shown(text))}</pre></td></tr>"
        for name, cosine, text in rows
    )
    return f'<div class="card scroll spaced"><h3>{escape(_shown(sample.query))}</h3><table>{lines}</table></div>'


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
