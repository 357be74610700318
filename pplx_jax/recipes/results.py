"""What a run leaves for its reader: `results.json`, a table for the terminal and the page `report.html`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tabulate

from pplx_jax.core.files import write_json, write_text
from pplx_jax.reports.run import METRICS, PRECISIONS, collect, environment, result_rows, set_rows
from pplx_jax.reports.run_page import render_run

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
    page = render_run(collect(workdir))
    write_text(workdir / "report.html", page)
    return workdir / "report.html"


def format_table(results: Mapping[str, Any]) -> str:
    """Returns the scores as a table: stages down, metrics and precisions across; cells without a score are empty."""
    columns = [(precision, metric) for metric in METRICS for precision in PRECISIONS]
    rows = [[row.name, *(row.value(*column) for column in columns)] for row in result_rows(results)]
    headers = [f"{METRICS[metric] if precision == PRECISIONS[0] else ''}\n{precision}" for precision, metric in columns]
    return _table(rows, ["", *headers])


def format_sets(results: Mapping[str, Any]) -> str:
    """Returns int8 nDCG@10 as a table: sets down, stages across; empty if only one set was evaluated on."""
    names, sets = set_rows(results)
    if not sets:
        return ""
    return "nDCG@10, int8, by set\n" + _table([[name, *values] for name, values in sets], ["", *names])


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """The first column is text, the others are numbers."""
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate.tabulate(
        rows, headers, floatfmt=".4f", colalign=alignment, headersglobalalign="right", disable_numparse=[0]
    )
