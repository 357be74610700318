"""What a run leaves for its reader: `results.json`, a table for the terminal and the page `report.html`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.files import write_json, write_text
from pplx_jax.reports import render_page
from pplx_jax.reports.run import METRICS, PRECISIONS, collect, environment, result_rows, set_rows

__all__ = ["environment", "format_sets", "format_table", "write_report", "write_results"]


def write_results(workdir: str | pathlib.Path, results: Mapping[str, Any]) -> pathlib.Path:
    """Writes WORKDIR/results.json atomically.

    Args:
        workdir: the run's folder.
        results: by stage ("bm25", "random", "initial", "diffusion", "pair", "contextual", "triplet", "merged")
            {"float" | "int8" | "binary": {"ndcg@10", "recall@100"}}, for "bm25" the two numbers alone, and
            "contextual" also with "with_context" and "without_context"; where several sets are evaluated on, these
            are means, and "sets" within each has the same figures by set; "seconds": {phase: seconds} in the
            order they ran. "environment", from `environment()`, is optional.
    """
    path = pathlib.Path(workdir) / "results.json"
    write_json(path, results)
    return path


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes WORKDIR/report.html, one file that needs nothing else, from what is there of a run.

    It reads results.json, data/corpus/counts.json and of each stage metrics.jsonl, config.gin and
    finished.json; a missing one leaves its section out.

    Raises:
        BadInput: there is no such folder, or results.json is damaged.
    """
    workdir = pathlib.Path(workdir)
    page = render_page(collect(workdir))
    write_text(workdir / "report.html", page)
    return workdir / "report.html"


def format_table(results: Mapping[str, Any]) -> str:
    """Lines up the scores: stages down, metrics and precisions across; what was not measured stays blank."""
    body = [
        [row.name, *(_cell(row.value(precision, metric)) for metric in METRICS for precision in PRECISIONS)]
        for row in result_rows(results)
    ]
    names = ["", *(precision for _ in METRICS for precision in PRECISIONS)]
    widths = [max(len(line[column]) for line in [names, *body]) for column in range(len(names))]
    group = sum(widths[1 : 1 + len(PRECISIONS)]) + 2 * (len(PRECISIONS) - 1)
    heading = " " * widths[0] + "".join(f"    {title:^{group}}" for title in METRICS.values())
    lines = [_aligned(line, widths) for line in [names, *body]]
    return "\n".join([heading.rstrip(), lines[0], "-" * max(map(len, lines)), *lines[1:]])


def format_sets(results: Mapping[str, Any]) -> str:
    """INT8 nDCG@10 set by set, sets down and stages across; empty where one set was evaluated on."""
    header, body = set_rows(results)
    lines = [["", *header], *([name, *map(_cell, values)] for name, values in body)]
    if not body:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(f"{cell:{'>' if at else '<'}{widths[at]}}" for at, cell in enumerate(line)) for line in lines]
    return "\n".join(["nDCG@10, int8, set by set", text[0], "-" * len(text[0]), *text[1:]])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    line = f"{cells[0]:<{widths[0]}}"
    for column in range(1, len(cells)):
        gap = "    " if (column - 1) % len(PRECISIONS) == 0 else "  "
        line += f"{gap}{cells[column]:>{widths[column]}}"
    return line.rstrip()
