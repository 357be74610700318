"""Two systems on the same queries: differences, their intervals, and whether chance would do."""

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
    """Values [queries] of this system and of the other in one part of a task, and the part's weight in the task."""

    this: np.ndarray
    other: np.ndarray
    weight: float


def compare(ours: Sequence[Outcome], other: str | pathlib.Path) -> dict[str, Any]:
    """Compares outcomes of one setting with those of a results folder, by each task's main metric.

    Args:
        ours: of one setting.
        other: a results folder; of its settings the one of the same name is taken, or its only one.

    Returns:
        {"against": model, "setting": the other's, "tasks": [{"task", "metric", "this", "other", "difference", "low",
        "high", "p"}], "mean": the same over the means of those tasks}; differences are this minus the other.

    Raises:
        BadInput: there is no such folder, no setting or no task to compare, or a task's queries differ.
    """
    theirs = read_outcomes(other)
    subject = read_subject(other)
    settings = sorted({outcome.setting for outcome in theirs})
    setting = ours[0].setting if ours[0].setting in settings else settings[0] if len(settings) == 1 else None
    if setting is None:
        found = ", ".join(settings) or "no finished task"
        raise BadInput(f"{other} has {found}, nothing to compare {ours[0].setting} with; score it under that setting")
    counterparts = {outcome.task: outcome for outcome in theirs if outcome.setting == setting}
    pairs = {one.task: _pairs(one, counterparts[one.task], other) for one in ours if one.task in counterparts}
    if not pairs:
        raise BadInput(f"{other} has none of the tasks {', '.join(one.task for one in ours)}; score it on one of them")
    metrics = {one.task: one.main_metric for one in ours}
    rows = [{"task": task, "metric": metrics[task], **_row(of_task)} for task, of_task in pairs.items()]
    everything = [
        dataclasses.replace(pair, weight=pair.weight / len(pairs)) for of_task in pairs.values() for pair in of_task
    ]
    return {"against": subject.model, "setting": setting, "tasks": rows, "mean": _row(everything)}


def _row(pairs: Sequence[_Pair]) -> dict[str, float]:
    this, other = (
        sum(pair.weight * float(np.mean(side)) for pair, side in zip(pairs, sides, strict=True))
        for sides in ([pair.this for pair in pairs], [pair.other for pair in pairs])
    )
    test = paired_test([(pair.this, pair.other) for pair in pairs], [pair.weight for pair in pairs])
    return {"this": this, "other": other, **dataclasses.asdict(test)}


def _pairs(ours: Outcome, theirs: Outcome, folder: str | pathlib.Path) -> list[_Pair]:
    """A task's values by query, of every part, in one order."""
    task, metric = ours.task, ours.main_metric
    if ours.revision != theirs.revision:
        raise BadInput(f"{task} has other data in {folder} ({theirs.revision}, not {ours.revision}); score it again")
    others = {(part.split, part.subset): part for part in theirs.parts}
    subsets = collections.Counter(part.split for part in ours.parts)
    pairs = []
    for part in ours.parts:
        other = others.get((part.split, part.subset))
        if other is None or set(other.query_ids) != set(part.query_ids):
            raise BadInput(f"{task} has other queries in {folder}; score it again")
        if metric not in part.per_query or metric not in other.per_query:
            raise BadInput(f"{task} keeps no {metric} by query, so nothing says whether a difference is chance")
        place = {query: row for row, query in enumerate(other.query_ids)}
        order = [place[query] for query in part.query_ids]
        weight = 1 / (len(subsets) * subsets[part.split])  # as `main_value` weighs it
        pairs.append(_Pair(part.per_query[metric], other.per_query[metric][order], weight))
    return pairs
