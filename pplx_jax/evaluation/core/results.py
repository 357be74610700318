"""A results folder: one model on one benchmark under any number of settings, a file a finished task and setting.

RESULTS/model.json                     what was scored on what: another model or benchmark is refused
RESULTS/tasks/TASK/SETTING.json        figures of every split and subset, query by query
RESULTS/results.json, results.md, report.html      made of those
"""

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.evaluation.core.benchmark import Part, Settings

FORMAT = 1
_MODEL, _TASKS = "model.json", "tasks"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a results folder is about.

    Attributes:
        benchmark: its name.
        model: as the user named it.
        fingerprint: of the model; BM25's is its name.
        dims, max_length, dtype: of the model; None where it has none.
    """

    benchmark: str
    model: str
    fingerprint: str
    dims: int | None = None
    max_length: int | None = None
    dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A task that is finished under one setting.

    Attributes:
        task, main_metric, revision: of the task.
        setting: the settings' name.
        settings: themselves.
        parts: the figures.
        seconds: it took.
    """

    task: str
    main_metric: str
    revision: str
    setting: str
    settings: Settings
    parts: Sequence[Part]
    seconds: float


class Results:
    """The outcomes of one subject, in memory and, where a folder is given, on disk as each is finished.

    Args:
        subject: what is scored.
        folder: of the results; None keeps them in memory alone.

    Raises:
        BadInput: the folder holds results of another model or another benchmark.
    """

    def __init__(self, subject: Subject, folder: str | pathlib.Path | None = None):
        self.subject, self.folder = subject, None if folder is None else pathlib.Path(folder)
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        if self.folder is None:
            return
        if (self.folder / _MODEL).exists():
            _check_same(read_subject(self.folder), subject, self.folder)
        else:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise BadInput(f"{self.folder} is there and is no results folder; give an empty or a new one")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _MODEL, {"format": FORMAT, **dataclasses.asdict(subject)})
        self._outcomes = {(found.task, found.setting): found for found in read_outcomes(self.folder)}

    @property
    def outcomes(self) -> list[Outcome]:
        """All of them, in the order in which they were finished or read."""
        return list(self._outcomes.values())

    def finished(self, task: str, setting: str, settings: Settings, revision: str) -> bool:
        """Whether this very thing has been scored."""
        found = self._outcomes.get((task, setting))
        return found is not None and (found.settings, found.revision) == (settings, revision)

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome, in place of an earlier one of that task and setting."""
        self._outcomes[outcome.task, outcome.setting] = outcome
        if self.folder is not None:
            path = self.folder / _TASKS / _file_name(outcome.task) / f"{_file_name(outcome.setting)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _to_json(outcome))


def read_subject(folder: str | pathlib.Path) -> Subject:
    """What a results folder is about.

    Raises:
        BadInput: it is none, or of another version.
    """
    path = pathlib.Path(folder) / _MODEL
    if not path.is_file():
        raise BadInput(f"{folder} is no results folder (no {_MODEL}); give what eval --output wrote")
    content = read_json(path, "score again into a new folder")
    if content.pop("format", None) != FORMAT:
        raise BadInput(f"{path} is of another version; score again into a new folder")
    try:
        return Subject(**content)
    except TypeError as error:
        raise BadInput(f"{path} is damaged ({error}); score again into a new folder") from None


def read_outcomes(folder: str | pathlib.Path) -> list[Outcome]:
    """The finished tasks of a results folder.

    Raises:
        BadInput: a file is damaged.
    """
    return [_from_json(path) for path in sorted((pathlib.Path(folder) / _TASKS).glob("*/*.json"))]


def _check_same(held: Subject, asked: Subject, folder: pathlib.Path) -> None:
    if held.benchmark != asked.benchmark:
        raise BadInput(f"{folder} holds results of {held.benchmark}, not of {asked.benchmark}; give another --output")
    if held.fingerprint != asked.fingerprint:
        raise BadInput(
            f"{folder} holds results of another model, {held.model} ({held.fingerprint}), not of {asked.model} "
            f"({asked.fingerprint}); give another --output"
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
    mend = "delete it, and the task is scored again"
    content = read_json(path, mend)
    try:
        if content.pop("format") != FORMAT:
            raise ValueError("another version")
        fields: dict[str, Any] = {
            "settings": Settings(**content["settings"]),
            "parts": [_part(part) for part in content["parts"]],
        }
        return Outcome(**{**content, **fields})
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}); {mend}") from None


def _part(held: dict[str, Any]) -> Part:
    arrays: dict[str, Any] = {
        "per_query": {name: np.array(values, np.float64) for name, values in held["per_query"].items()},
        "lengths": np.array(held["lengths"], np.int64),
    }
    return Part(**{**held, **arrays})
