"""What `pplx-jax data report` found, in text: all that its page shows."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any


def render_data_text(report: Mapping[str, Any], *, name: str) -> str:
    """Returns the text.

    Args:
        report: what `report_corpus` writes as report.json.
        name: of the run.
    """
    lines = [f"{name}: data", extent(report), ""]
    lines += [f"{title}: {value} ({note})" for title, value, note in headlines(report)]
    lines += ["", "Languages", *(f"  {language}: {count:,}" for language, count in report["languages"].items())]
    for stage, one in report["fill_by_stage"].items():
        lines += ["", f"A packed row: {stage}, {one['fill']:.1%} full", textwrap.indent(one["sample"], "  ")]
    for stage, sources in report["sources"].items():
        for source, one in sources.items():
            lines += ["", f"{stage}/{source}"]
            lines += [f"  {title}: {value}" for title, value in counts(one).items()]
            lines += [
                f"  Tokens of {field}: " + ", ".join(f"{title} {value:,}" for title, value in values.items())
                for field, values in one["token_lengths"].items()
                if values
            ]
            for title, text in texts(one):
                lines += [f"  {title}", textwrap.indent(text, "    ")]
    return "\n".join(lines) + "\n"


def headlines(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, value, note) of what stands above all sources."""
    twice = report["duplicates"]
    return [
        ("Examples", f"{report['examples']:,}", f"{report['tokens']:,} tokens"),
        ("Fill of packed rows", f"{report['fill']:.1%}", "cells that hold a token"),
        ("Duplicates", f"{twice['exact'] + twice['near']:,}", f"{twice['exact']:,} exact, {twice['near']:,} near"),
        ("Overlap with evaluation", f"{report['overlap']:,}", "examples that share text with it"),
        ("Bad rows", f"{report['bad_rows']:,}", "skipped"),
    ]


def extent(report: Mapping[str, Any]) -> str:
    """How far the sources were looked at."""
    every = [one for sources in report["sources"].values() for one in sources.values()]
    stopped = sum(one["stopped"] for one in every)
    if not stopped:
        return "Every source was read to its end."
    first = f"Of each source the first {report['looked_at']:,} examples were looked at"
    return f"{first}; the counts of {stopped} of {len(every)} end there."


def counts(one: Mapping[str, Any]) -> dict[str, str]:
    """Title -> number of everything that is counted of a source."""
    found = {
        "Exact duplicates": one["duplicates"]["exact"],
        "Near duplicates": one["duplicates"]["near"],
        "Overlap with evaluation": one["overlap"]["examples"],
        "Rows read": one["rows"]["rows"],
        "Bad rows": one["rows"]["bad"],
        **{f"Bad: {reason}": count for reason, count in one["rows"]["reasons"].items()},
        **{f"Cut: {field}": count for field, count in one.get("truncated", {}).items()},
    }
    return {
        "Examples": f"{one['examples']:,}" + (" (the first ones alone)" if one["stopped"] else ""),
        "Tokens": f"{one['tokens']:,}",
        **({"Fill of packed rows": f"{one['fill']:.1%}"} if "fill" in one else {}),
        **{title: f"{count:,}" for title, count in found.items()},
    }


def texts(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, text) of the samples of a source, its bad rows and its overlaps."""
    for place, sample in enumerate(one["samples"], 1):
        for step, text in sample.items():
            yield f"Sample {place}: {step}", text
    for reason, places in one["rows"]["samples"].items():
        yield f"Bad rows: {reason}", "\n".join(places)
    if one["overlap"]["samples"]:
        yield "Overlap with evaluation", "\n".join(one["overlap"]["samples"])
