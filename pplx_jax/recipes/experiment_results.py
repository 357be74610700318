"""Compares the arms of an experiment: means over queries and seeds, and paired intervals against the first arm."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tabulate

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.core.results import Outcome, read_outcomes
from pplx_jax.evaluation.core.significance import INTERVAL_RESAMPLES, seeded_interval

# One value per query, by seed and query id.
Values = dict[int, dict[str, float]]


def compare_arms(scores: Mapping[str, Mapping[int, pathlib.Path]]) -> dict[str, Any]:
    """Compares each arm with the first one, on the seeds that both have finished.

    Args:
      scores: arm -> seed -> results folder of the finished runs.

    Returns:
      "baseline", the first arm; "resamples"; and "outcomes": [{"outcome": such as "evaluation, int8", "metric",
      "queries", "arms": [{"arm", "mean", "by_seed", "difference", "low", "high"}]}]. The difference is that of the
      means over the common seeds, arm minus baseline, with its 95% interval; none for the baseline itself.

    Raises:
      BadInput: a results folder is damaged or has other queries than the one of the baseline.
    """
    values = {arm: _values(folders) for arm, folders in scores.items()}
    baseline = next(iter(scores))
    outcomes = []
    for outcome, metric in dict.fromkeys(key for of_arm in values.values() for key in of_arm):
        reference = values[baseline].get((outcome, metric), {})
        arms = {arm: of_arm[outcome, metric] for arm, of_arm in values.items() if (outcome, metric) in of_arm}
        rows = [{"arm": arm, **_row(each, {} if arm == baseline else reference)} for arm, each in arms.items()]
        queries = len(next(iter(next(iter(arms.values())).values())))
        outcomes.append({"outcome": outcome, "metric": metric, "queries": queries, "arms": rows})
    return {"baseline": baseline, "resamples": INTERVAL_RESAMPLES, "outcomes": outcomes}


def _values(folders: Mapping[int, pathlib.Path]) -> dict[tuple[str, str], Values]:
    found: dict[tuple[str, str], Values] = {}
    for seed, folder in folders.items():
        for outcome in sorted(read_outcomes(folder), key=_place):
            name, metric = f"{outcome.task}, {outcome.setting.replace('tanh', 'float')}", outcome.main_metric
            per_query = {
                f"{part.subset}/{query}": float(value)
                for part in outcome.parts
                for query, value in zip(part.query_ids, part.per_query[metric], strict=True)
            }
            found.setdefault((name, metric), {})[seed] = per_query
    return found


def _place(outcome: Outcome) -> tuple[str, bool, bool]:
    return outcome.task, outcome.settings.context, outcome.settings.quantization == "binary"


def _row(values: Values, reference: Values) -> dict[str, Any]:
    by_seed = {str(seed): float(np.mean([*of_seed.values()])) for seed, of_seed in values.items()}
    row: dict[str, Any] = {"mean": float(np.mean([*by_seed.values()])), "by_seed": by_seed}
    common = [seed for seed in values if seed in reference]
    if not common:
        return row
    queries = list(values[common[0]])
    if any({*of_seed[seed]} != {*queries} for of_seed in (values, reference) for seed in common):
        raise BadInput("the arms were scored on different queries; remove the scores/ folders of older runs")
    ours, theirs = (
        np.array([[of_seed[seed][query] for query in queries] for seed in common]) for of_seed in (values, reference)
    )
    low, high = seeded_interval(ours - theirs)
    return row | {"difference": float((ours - theirs).mean()), "low": low, "high": high}


def format_comparison(compared: Mapping[str, Any]) -> str:
    """Returns a table for each outcome: arms with mean, difference and interval, and the mean of each seed."""
    blocks = []
    for outcome in compared["outcomes"]:
        seeds = [str(seed) for seed in compared["seeds"]]
        rows = [
            [
                row["arm"],
                f"{row['mean']:.4f}",
                f"{row['difference']:+.4f}" if "difference" in row else "",
                f"{row['low']:+.4f} to {row['high']:+.4f}" if "difference" in row else "",
                *(f"{row['by_seed'][seed]:.4f}" if seed in row["by_seed"] else "" for seed in seeds),
            ]
            for row in outcome["arms"]
        ]
        heads = ["", outcome["metric"], "difference", "95% interval", *(f"seed {seed}" for seed in seeds)]
        table = tabulate.tabulate(
            rows,
            heads,
            colalign=("left", *["right"] * (len(heads) - 1)),
            headersglobalalign="right",
            disable_numparse=True,
        )
        blocks.append(f"{outcome['outcome']}, {outcome['queries']} queries\n{table}\n")
    note = f"Differences are to {compared['baseline']}, paired by query; queries and seeds are resampled.\n"
    return "\n".join([*blocks, note])
