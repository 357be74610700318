"""The verb `report`: trials ranked by a metric, as a table, as JSON and as a page with charts."""

import pathlib
from collections.abc import Sequence
from typing import Any

import tabulate

from pplx_jax.checkpoints.merge_folders import MERGED
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_text
from pplx_jax.core.paths import as_path, resolved
from pplx_jax.core.spelling import nearest
from pplx_jax.recipes.sweep_trials import differing_settings, find_trials
from pplx_jax.reports.sweep_page import Ranking, TrialRun

_LOWER_IS_BETTER = ("loss", "seconds", "norm")


def report_trials(
    folders: Sequence[pathlib.Path],
    metric: str | None = None,
    best: str | None = None,
    output: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Ranks the trials in `folders` and writes a page.

    Args:
      folders: workdirs of runs or of sweeps.
      metric: dotted name, see `TrialRun.metrics`; by default int8 nDCG@10 of the last stage that any trial has scored.
      best: "highest" or "lowest"; by default lowest for losses, norms and times.
      output: the path of the page.

    Returns:
      {"metric", "best", "parameters", "trials": [{"trial", "rank", "value", "status", "parameters", "metrics"}],
      "finished", "unfinished", "report", "table"}.

    Raises:
      BadInput: a folder has no trial, a file is damaged, or no trial has the metric.
    """
    from pplx_jax.reports.sweep_page import render_trials

    ranking = rank(find_trials(folders), metric, best)
    output = as_path(output or as_path(folders[0]) / "trials.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render_trials(ranking, title=resolved(as_path(folders[0])).name))
    rows = [
        {
            "trial": trial.name,
            "rank": ranking.ranks.get(trial.name),
            "value": trial.metrics.get(ranking.metric),
            "status": trial.status,
            "parameters": {key: trial.settings.get(key) for key in ranking.parameters},
            "metrics": dict(trial.metrics),
        }
        for trial in ranking.trials
    ]
    finished = sum(trial.finished for trial in ranking.trials)
    return {
        "metric": ranking.metric,
        "best": "lowest" if ranking.lowest else "highest",
        "parameters": list(ranking.parameters),
        "finished": finished,
        "unfinished": len(rows) - finished,
        "report": str(output),
        "table": format_trials(ranking) + "\n",
        "trials": rows,
    }


def rank(trials: Sequence[TrialRun], metric: str | None = None, best: str | None = None) -> Ranking:
    """Returns the trials in order of a metric; see `report_trials`."""
    known = sorted({name for trial in trials for name in trial.metrics})
    metric = metric or _default_metric(trials, known)
    if known and metric not in known:
        hint = nearest(metric, known) or f"; there are {', '.join(known[:12])}"
        raise BadInput(f"--metric {metric}: no trial has it{hint}")
    lowest = best == "lowest" if best else _is_lower_better(metric)
    in_order = sorted(trials, key=lambda trial: _order(trial, metric, lowest))
    ranked = [trial.name for trial in in_order if trial.finished and metric in trial.metrics]
    ranks = {name: place for place, name in enumerate(ranked, 1)}
    return Ranking(metric, lowest, differing_settings(trials), in_order, ranks)


def _is_lower_better(metric: str) -> bool:
    return metric.startswith("seconds.") or metric.endswith(_LOWER_IS_BETTER) or ".eval/loss/" in metric


def _default_metric(trials: Sequence[TrialRun], known: Sequence[str]) -> str:
    """Returns the score of the last stage that any trial has scored, else the loss of the last one that was trained."""
    stages = list(dict.fromkeys(stage for trial in trials for stage in trial.stages))
    last_first = sorted(stages, key=lambda stage: stage == MERGED)[::-1]
    candidates = [f"{stage}.int8.ndcg@10" for stage in last_first] + [f"{stage}.loss" for stage in last_first]
    return next((name for name in candidates if name in known), f"{MERGED}.int8.ndcg@10")


def _order(trial: TrialRun, metric: str, lowest: bool) -> tuple[bool, bool, float, str]:
    value = trial.metrics.get(metric)
    return not trial.finished, value is None, (value or 0.0) * (1 if lowest else -1), trial.name


def format_trials(ranking: Ranking) -> str:
    """Returns a table: rank, trial, the metric, the settings that differ, and the progress of unfinished trials."""
    rows = [
        [
            ranking.ranks.get(trial.name),
            trial.name,
            trial.metrics.get(ranking.metric),
            *(trial.settings.get(key, "") for key in ranking.parameters),
            "" if trial.finished else trial.status,
        ]
        for trial in ranking.trials
    ]
    headers = ["", "trial", ranking.metric, *ranking.parameters, ""]
    formats = ["", "", ".4f", *[".12g"] * len(ranking.parameters), ""]
    table = tabulate.tabulate(rows, headers, floatfmt=formats, disable_numparse=[1])
    unfinished = sum(not trial.finished for trial in ranking.trials)
    if unfinished:
        table += f"\n{unfinished} of {len(rows)} trials are not finished and have no rank"
    return table
