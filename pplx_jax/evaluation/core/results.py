"""A results folder: one model on one benchmark under several settings.

RESULTS/model.json                             the model and the benchmark; others are refused
RESULTS/tasks/TASK/SETTING.json                one finished task: metrics of every split and subset, per query
RESULTS/results.json, results.md, report.html  written from those
"""

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.paths import as_path
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.scoring.system import Settings

FORMAT = 1
_MODEL, _TASKS = "model.json", "tasks"


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model and the benchmark of a results folder.

    Attributes:
        benchmark: its name.
        model: the user's name for the model.
        fingerprint: of the model; for BM25 its name.
        dims, max_length, dtype: of the model; None for BM25.
    """

    benchmark: str
    model: str
    fingerprint: str
    dims: int | None = None
    max_length: int | None = None
    dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished task under one setting.

    Attributes:
        task, main_metric, revision: of the task.
        setting: name of the settings.
        settings: the settings.
        parts: the metrics.
        seconds: wall-clock time.
    """

    task: str
    main_metric: str
    revision: str
    setting: str
    settings: Settings
    parts: Sequence[Part]
    seconds: float


class Results:
    """The outcomes of one subject, in memory and optionally in a folder. Each is written as soon as it is finished.

    Args:
        subject: the model and the benchmark.
        folder: of the results; None keeps them in memory only.

    Raises:
        BadInput: the folder holds something else, or results of another model or benchmark.
    """

    def __init__(self, subject: Subject, folder: str | pathlib.Path | None = None):
        self.subject, self.folder = subject, None if folder is None else as_path(folder)
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        if self.folder is None:
            return
        if (self.folder / _MODEL).exists():
            _check_same(read_subject(self.folder), subject, self.folder)
        else:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise BadInput(f"{self.folder} exists and is not a results folder; give an empty or a new folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _MODEL, {"format": FORMAT, **dataclasses.asdict(subject)})
        self._outcomes = {(found.task, found.setting): found for found in read_outcomes(self.folder)}

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes, in the order in which they were finished or read."""
        return list(self._outcomes.values())

    def finished(self, task: str, setting: str, settings: Settings, revision: str) -> bool:
        """Returns whether this task has an outcome under equal settings and with equal data."""
        found = self._outcomes.get((task, setting))
        return found is not None and (found.settings, found.revision) == (settings, revision)

    def add(self, outcome: Outcome) -> None:
        """Stores an outcome. It replaces an earlier one of the same task and setting."""
        self._outcomes[outcome.task, outcome.setting] = outcome
        if self.folder is not None:
            path = self.folder / _TASKS / _file_name(outcome.task) / f"{_file_name(outcome.setting)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _to_json(outcome))


def read_subject(folder: str | pathlib.Path) -> Subject:
    """Reads the model and the benchmark of a results folder.

    Raises:
        BadInput: it is not a results folder, is damaged or of another version.
    """
    path = as_path(folder) / _MODEL
    if not path.is_file():
        raise BadInput(f"{folder} is not a results folder (no {_MODEL}); give a folder that eval --output wrote")
    content = read_json(path, "evaluate again into a new folder")
    if content.pop("format", None) != FORMAT:
        raise BadInput(f"{path} is of another version; evaluate again into a new folder")
    try:
        return Subject(**content)
    except TypeError as error:
        raise BadInput(f"{path} is damaged ({error}); evaluate again into a new folder") from None


def read_outcomes(folder: str | pathlib.Path) -> list[Outcome]:
    """Reads the finished tasks of a results folder.

    Raises:
        BadInput: a file is damaged.
    """
    return [_from_json(path) for path in sorted((local_copy(as_path(folder)) / _TASKS).glob("*/*.json"))]


def _check_same(held: Subject, requested: Subject, folder: pathlib.Path) -> None:
    if held.benchmark != requested.benchmark:
        raise BadInput(
            f"{folder} holds results of {held.benchmark}, not of {requested.benchmark}; give another --output"
        )
    if held.fingerprint != requested.fingerprint:
        raise BadInput(
            f"{folder} holds results of another model, {held.model} ({held.fingerprint}), not of {requested.model} "
            f"({requested.fingerprint}); give another --output"
        )
    if held.max_length != requested.max_length:
        raise BadInput(
            f"{folder} holds results of texts up to {held.max_length} tokens (max_length), not {requested.max_length}; "
            "give another --output"
        )


def _file_name(name: str) -> str:
    return urllib.parse.quote(name, safe=" ")


def _to_json(outcome: Outcome) -> dict[str, Any]:
    parts = [
        {
            **{field.name: getattr(part, field.name) for field in dataclasses.fields(Part)},
            "metrics": dict(part.metrics),
            "query_ids": list(part.query_ids),
            "per_query": {name: np.asarray(values).tolist() for name, values in part.per_query.items()},
            "lengths": [int(length) for length in part.lengths],
        }
        for part in outcome.parts
    ]
    fields = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(Outcome)}
    return {"format": FORMAT, **fields, "settings": dataclasses.asdict(outcome.settings), "parts": parts}


def _from_json(path: pathlib.Path) -> Outcome:
    fix = "delete it, then the task is evaluated again"
    content = read_json(path, fix)
    try:
        if content.pop("format") != FORMAT:
            raise ValueError("another version")
        fields: dict[str, Any] = {
            "settings": Settings(**content["settings"]),
            "parts": [_part(part) for part in content["parts"]],
        }
        return Outcome(**{**content, **fields})
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}); {fix}") from None


def _part(held: dict[str, Any]) -> Part:
    arrays: dict[str, Any] = {
        "per_query": {name: np.array(values, np.float64) for name, values in held["per_query"].items()},
        "lengths": np.array(held["lengths"], np.int64),
    }
    return Part(**{**held, **arrays})
