"""A plan as text for the terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any

import tabulate

from pplx_jax.parallel.mesh import mesh_text

_GIB = 2**30


def as_table(report: dict[str, Any]) -> str:
    """Returns the plan's numbers in blocks of lines."""
    mesh = mesh_text(report["mesh_sizes"])
    used, limit = report["hbm_bytes_per_chip"] / _GIB, report["hbm_limit_bytes"] / _GIB
    lines = [
        f"{report['stage']} on {report['topology']}: {report['chips']} chips, mesh {mesh}",
        f"{report['rows']:,} sequences, {report['tokens_per_step']:,} tokens per step",
        "",
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}: {used:.2f} of {limit:.2f} GiB per chip",
        _columns([(name.replace("_", " "), size / _GIB, "GiB") for name, size in report["hbm"].items()], ".2f"),
        *(f"  {line}" for line in report["advice"]),
    ]
    if report["step_seconds_estimate"]:
        lines += [
            "",
            f"step {report['step_seconds_estimate']:.3f} s (estimated), {report['flops_per_step']:.3e} FLOPs, "
            f"MFU {report['mfu_estimate']:.1%}",
            _columns([(name.replace("_", " "), seconds, "s") for name, seconds in report["seconds"].items()], ".3f"),
            f"{report['tokens_per_second']:,.0f} tokens/s; the stage: {report['chip_hours']:,.0f} chip-hours, "
            f"{report['days']:.1f} days",
        ]
        if report["collectives"]:
            lines += ["", "received by a chip per step", _collectives(report["collectives"])]
    if report.get("without_estimate"):
        lines += ["", "without an estimate: " + "; ".join(report["without_estimate"])]
    return "\n".join(lines) + "\n"


def _collectives(collectives: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            each["kind"],
            each["link"],
            f"of {each['devices']}",
            f"{each['bytes'] / _GIB:.2f} GiB",
            f"{each['seconds']:.3f} s",
            "overlaps matrix products" if each["overlapped"] else "exposed",
        )
        for each in collectives
    ]
    return _columns(rows, "", ("left", "left", "right", "right", "right", "left"))


def _columns(rows: Sequence[Sequence[Any]], number_format: str, alignment: Sequence[str] | None = None) -> str:
    table = tabulate.tabulate(rows, tablefmt="plain", floatfmt=number_format, colalign=alignment if rows else None)
    return textwrap.indent(table, "  ")
