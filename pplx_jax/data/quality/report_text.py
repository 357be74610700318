"""The report of `pplx-jax data report` as text. It contains everything that the HTML page shows."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN_CHARACTERS = 600
_WORDS_NOTE = "Without a vocabulary, words are counted instead of tokens; --vocabulary gives tokens."


def render_data_text(report: Mapping[str, Any], *, name: str) -> str:
    """Returns the text.

    Args:
        report: the content of report.json.
        name: the name of the run or file.
    """
    unit = report["unit"]
    lines = [f"{name}: data", extent(report), ""]
    lines += [f"{title}: {value} ({note})" for title, value, note in headlines(report)]
    lines += ["", "Languages", *(f"  {language}: {count:,}" for language, count in report["languages"].items())]
    for stage, one in report["fill_by_stage"].items():
        lines += ["", f"A packed sequence: {stage}, {one['fill']:.1%} full", textwrap.indent(one["sample"], "  ")]
    for stage, sources in report["sources"].items():
        for source, one in sources.items():
            lines += ["", f"{stage}/{source}"]
            lines += [f"  {title}: {value}" for title, value in counts(one, unit).items()]
            lines += [
                f"  {unit.capitalize()} of {field}: " + ", ".join(f"{title} {n:,}" for title, n in values.items())
                for field, values in one["token_lengths"].items()
                if values
            ]
            for title, text in texts(one):
                lines += [f"  {title}", textwrap.indent(text, "    ")]
    return "\n".join(lines) + "\n"


def headlines(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (title, value, note) of the counts over all sources."""
    duplicates, overlap = report["duplicates"], report["overlap"]
    found = [
        ("Examples", f"{report['examples']:,}", f"{report['tokens']:,} {report['unit']}"),
        ("Fill of packed sequences", f"{report['fill']:.1%}", "positions that hold a token"),
        (
            "Duplicates",
            f"{duplicates['exact'] + duplicates['near']:,}",
            f"{duplicates['exact']:,} exact, {duplicates['near']:,} near",
        ),
        ("Bad rows", f"{report['bad_rows']:,}", "skipped"),
    ]
    if overlap is not None:
        found.insert(3, ("Overlap with evaluation", f"{overlap:,}", "examples that share text with it"))
    return found


def extent(report: Mapping[str, Any]) -> str:
    """Returns how much of the sources was read, and what was counted."""
    every = [one for sources in report["sources"].values() for one in sources.values()]
    note = f" {_WORDS_NOTE}" if report["unit"] == "words" else ""
    if not any(one["stopped"] for one in every):
        return f"Every source was read to its end.{note}"
    stopped = sum(one["stopped"] for one in every)
    first = f"Of each source the first {report['looked_at']:,} examples were looked at"
    return f"{first}; the counts of {stopped} of {len(every)} end there.{note}"


def counts(one: Mapping[str, Any], unit: str = "tokens") -> dict[str, str]:
    """Returns title -> number, for everything that is counted of a source."""
    dropped = one["duplicates"].get("dropped", "")
    titles = {"exact": "Exact duplicates", "near": "Near duplicates"}
    left_out = {"exact": ("exact",), "near": ("exact", "near")}.get(dropped, ())
    found = {
        **{
            title + (", left out of training" if kind in left_out else ""): one["duplicates"][kind]
            for kind, title in titles.items()
        },
        "Overlap with evaluation": one["overlap"]["examples"],
        "Rows read": one["rows"]["rows"],
        "Bad rows": one["rows"]["bad"],
        **{f"Bad: {reason}": count for reason, count in one["rows"]["reasons"].items()},
        **{f"Cut: {field}": count for field, count in one.get("truncated", {}).items()},
    }
    return {
        "Examples": f"{one['examples']:,}" + (" (the first ones only)" if one["stopped"] else ""),
        unit.capitalize(): f"{one['tokens']:,}",
        **({"Fill of packed sequences": f"{one['fill']:.1%}"} if "fill" in one else {}),
        **{title: f"{count:,}" for title, count in found.items() if count is not None},
    }


def texts(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (title, text) of the samples of a source, its bad rows and its overlaps."""
    for place, sample in enumerate(one["samples"], 1):
        for step, text in sample.items():
            yield f"Sample {place}: {step}", text
    for reason, places in one["rows"]["samples"].items():
        yield f"Bad rows: {reason}", "\n".join(places)
    if one["overlap"]["samples"]:
        yield "Overlap with evaluation", "\n".join(one["overlap"]["samples"])


def shortened(text: str) -> str:
    """Returns at most the first 600 characters."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
