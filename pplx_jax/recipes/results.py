"""The results of a run: `results.json`, tables for the terminal, and the page `report.html`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tabulate

from pplx_jax.core.files import write_json, write_text
from pplx_jax.core.paths import as_path
from pplx_jax.reports.run import (
    METRICS,
    PRECISIONS,
    collect,
    environment,
    gain_rows,
    masked_token_rows,
    result_rows,
    set_rows,
)
from pplx_jax.reports.run_page import render_run

__all__ = ["TABLES", "environment", "write_report", "write_results"]


def write_results(workdir: str | pathlib.Path, results: Mapping[str, Any]) -> pathlib.Path:
    """Writes WORKDIR/results.json atomically.

    Args:
        workdir: the run's folder.
        results: for "random", "initial", every stage and "merged", {"float" | "int8" | "binary": {"ndcg@10",
            "recall@100"}}; for "bm25" only the two numbers. A stage with context also has "with_context" and
            "without_context". If there are several evaluation sets, these are means, and "sets" in each entry has the
            numbers by set. "probes" in each entry has those of the probes by name. "gains" has the rows of
            `gains.gains`. "masked_tokens" in the entry of a stage that predicts them has what `masked_tokens` returns.
            "seconds" is {phase: seconds} in the order of the phases; "environment" is that of
            `environment()`; "stages", the names of the recipe's stages in order, is optional.
    """
    path = as_path(workdir) / "results.json"
    write_json(path, results)
    return path


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes WORKDIR/report.html, a self-contained page of a complete or partial run.

    It reads results.json, data/corpus/counts.json, and metrics.jsonl, config.gin and finished.json of each stage. A
    section whose file is missing is left out.

    Raises:
        BadInput: there is no such folder, or a file in it is damaged.
    """
    workdir = as_path(workdir)
    page = render_run(collect(workdir))
    write_text(workdir / "report.html", page)
    return workdir / "report.html"


def format_table(results: Mapping[str, Any]) -> str:
    """Returns the scores as a table: a row per stage, a column per metric and precision, gaps for missing scores.

    It is empty if nothing was scored.
    """
    if not result_rows(results):
        return ""
    columns = [(precision, metric) for metric in METRICS for precision in PRECISIONS]
    rows = [[row.name, *(row.value(*column) for column in columns)] for row in result_rows(results)]
    headers = [f"{METRICS[metric] if precision == PRECISIONS[0] else ''}\n{precision}" for precision, metric in columns]
    return _table(rows, ["", *headers])


def format_sets(results: Mapping[str, Any]) -> str:
    """Returns int8 nDCG@10 as a table: a row per set or probe, a column per stage; empty if there is only one set."""
    names, sets = set_rows(results)
    if not sets:
        return ""
    return "nDCG@10, int8, by set\n" + _table([[name, *values] for name, values in sets], ["", *names])


def format_gains(results: Mapping[str, Any]) -> str:
    """Returns what each stage adds to nDCG@10 as a table of sentences; empty if no values of queries were kept."""
    rows = gain_rows(results)
    if not rows:
        return ""
    return "What each stage adds: nDCG@10, int8, 95% intervals over queries\n" + tabulate.tabulate(
        rows, tablefmt="plain"
    )


def format_masked_tokens(results: Mapping[str, Any]) -> str:
    """Returns loss and accuracy on masked tokens as a table; empty if no stage predicts them."""
    rows = masked_token_rows(results)
    if not rows:
        return ""
    title = "Masked tokens of held-out text before and after the stage, 95% intervals over texts\n"
    return title + tabulate.tabulate(rows, ["", "masked", "loss", "accuracy"], tablefmt="plain", disable_numparse=True)


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Returns a table whose first column is text and whose other columns are numbers."""
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate.tabulate(
        rows, headers, floatfmt=".4f", colalign=alignment, headersglobalalign="right", disable_numparse=[0]
    )


TABLES = (format_table, format_sets, format_gains, format_masked_tokens)  # of a finished run, in the terminal
