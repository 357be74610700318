"""Compares two systems on the same queries: differences, confidence intervals and p values."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.core.results import Outcome, read_outcomes, read_subject
from pplx_jax.evaluation.core.significance import paired_test


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Values [queries] of both systems in one part of a task, and the part's weight in the mean."""

    this: np.ndarray
    other: np.ndarray
    weight: float


def compare(ours: Sequence[Outcome], other: str | pathlib.Path) -> dict[str, Any]:
    """Compares the outcomes of one setting with a results folder, by each task's main metric.

    Args:
        ours: outcomes of one setting.
        other: a results folder. Its setting of the same name is used, or else its only setting.

    Returns:
        {"against": the other model, "setting": its setting, "tasks": [{"task", "metric", "this", "other", "difference",
        "low", "high", "p"}], "mean": the same keys for the mean over these tasks}. A difference is this minus other.

    Raises:
        BadInput: the folder does not exist, has no setting or task in common with `ours`, or has other queries.
    """
    theirs = read_outcomes(other)
    subject = read_subject(other)
    settings = sorted({outcome.setting for outcome in theirs})
    setting = ours[0].setting if ours[0].setting in settings else settings[0] if len(settings) == 1 else None
    if setting is None:
        found = ", ".join(settings) or "no finished task"
        raise BadInput(f"{other} has {found}, not {ours[0].setting}; evaluate that model under {ours[0].setting}")
    counterparts = {outcome.task: outcome for outcome in theirs if outcome.setting == setting}
    pairs = {one.task: _pairs(one, counterparts[one.task], other) for one in ours if one.task in counterparts}
    if not pairs:
        raise BadInput(
            f"{other} has none of the tasks {', '.join(one.task for one in ours)}; evaluate it on one of them"
        )
    metrics = {one.task: one.main_metric for one in ours}
    rows = [{"task": task, "metric": metrics[task], **_row(of_task)} for task, of_task in pairs.items()]
    all_pairs = [
        dataclasses.replace(pair, weight=pair.weight / len(pairs)) for of_task in pairs.values() for pair in of_task
    ]
    return {"against": subject.model, "setting": setting, "tasks": rows, "mean": _row(all_pairs)}


def _row(pairs: Sequence[_Pair]) -> dict[str, float]:
    this, other = (
        sum(pair.weight * float(np.mean(side)) for pair, side in zip(pairs, sides, strict=True))
        for sides in ([pair.this for pair in pairs], [pair.other for pair in pairs])
    )
    test = paired_test([(pair.this, pair.other) for pair in pairs], [pair.weight for pair in pairs])
    return {"this": this, "other": other, **dataclasses.asdict(test)}


def _pairs(ours: Outcome, theirs: Outcome, folder: str | pathlib.Path) -> list[_Pair]:
    """Returns both systems' values of every part of a task, in the same query order."""
    task, metric = ours.task, ours.main_metric
    if ours.revision != theirs.revision:
        raise BadInput(f"{task} has other data in {folder} ({theirs.revision}, not {ours.revision}); evaluate it again")
    others = {(part.split, part.subset): part for part in theirs.parts}
    subsets = collections.Counter(part.split for part in ours.parts)
    pairs = []
    for part in ours.parts:
        other = others.get((part.split, part.subset))
        if other is None or set(other.query_ids) != set(part.query_ids):
            raise BadInput(f"{task} has other queries in {folder}; evaluate it again")
        if metric not in part.per_query or metric not in other.per_query:
            raise BadInput(f"{task} has no {metric} per query, which a paired test needs; leave --compare out")
        row_of = {query: row for row, query in enumerate(other.query_ids)}
        order = [row_of[query] for query in part.query_ids]
        weight = 1 / (len(subsets) * subsets[part.split])  # as in `main_value`
        pairs.append(_Pair(part.per_query[metric], other.per_query[metric][order], weight))
    return pairs
