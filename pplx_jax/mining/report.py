"""A report on mined negatives for people: counts, and sample queries with their positive and negatives."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.files import write_text
from pplx_jax.reports.html import render

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
    """Writes report.txt and report.html into the folder."""
    write_text(folder / "report.txt", _text(settings, counts, samples))
    write_text(folder / "report.html", _page(settings, counts, samples))


def _text(settings: Mapping[str, Any], counts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    lines = [f"{name.replace('_', ' ')}: {_number(value)}" for name, value in counts.items()]
    lines += ["", "settings: " + ", ".join(f"{name}={value}" for name, value in settings.items())]
    for sample in samples:
        text, cosine = sample.positive
        lines += ["", f"query     {_shown(sample.query)}", f"positive  {cosine:.3f}        {_shown(text)}"]
        lines += [f"negative  {cosine:.3f} #{rank:<5} {_shown(text)}" for text, rank, cosine in sample.negatives]
    return "\n".join(lines) + "\n"


def _page(settings: Mapping[str, Any], counts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    values = {
        "subtitle": "If a negative answers its query, the window starts too early or the ceiling is too high.",
        "facts": {name.replace("_", " "): _number(value) for name, value in (*counts.items(), *settings.items())},
        "samples": [(_shown(sample.query), _rows(sample)) for sample in samples],
    }
    return render("mining.html", "Hard negatives", values)


def _rows(sample: Sample) -> list[tuple[str, float, str]]:
    text, cosine = sample.positive
    negatives = [(f"rank {rank}", cosine, _shown(text)) for text, rank, cosine in sample.negatives]
    return [("positive", cosine, _shown(text)), *negatives]


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
