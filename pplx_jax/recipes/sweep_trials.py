"""What the runs of a sweep have come to, read from their workdirs; runs that are not finished included."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pplx_jax.configuration import read_resolved
from pplx_jax.core.errors import BadInput
from pplx_jax.reports.run import STAGES, numbers
from pplx_jax.reports.sweep_page import TrialRun
from pplx_jax.training.metrics import read_metrics

_MARKS = ("trial.json", "recipe.json", "results.json")  # any of them makes a folder a run's


def find_trials(folders: Sequence[pathlib.Path]) -> list[TrialRun]:
    """The runs in `folders`: each is one, or holds some.

    Raises:
      BadInput: a folder that does not exist or holds no run, or a damaged file in one.
    """
    found: list[TrialRun] = []
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}: give the workdir of a run, or of a sweep")
        if _is_run(folder):
            runs = [folder]
        else:
            runs = sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child))
        if not runs:
            raise BadInput(f"{folder} holds no run: there is no {' or '.join(_MARKS)} in it, nor one folder below")
        names = [str(run) if len(folders) > 1 or run == folder else run.name for run in runs]
        found += [_read(name, run) for name, run in zip(names, runs, strict=True)]
    return found


def differing_settings(trials: Sequence[TrialRun]) -> list[str]:
    """Bindings that are not the same in all trials, in the order in which the runs' configurations have them."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    return [key for key in keys if len({trial.settings[key] for trial in trials if key in trial.settings}) > 1]


def _is_run(folder: pathlib.Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _read(name: str, folder: pathlib.Path) -> TrialRun:
    record = _json(folder / "trial.json")
    rows = {stage: read_metrics(folder / stage / "metrics.jsonl") for stage in STAGES}
    logged = {stage: [numbers(row) for row in of_stage] for stage, of_stage in rows.items() if of_stage}
    settings = _settings(folder, record)
    results = _results(folder)
    metrics = dict(_flat(results))
    for stage, of_stage in logged.items():
        metrics |= {f"{stage}.{metric}": value for metric, value in of_stage[-1].items() if metric != "step"}
    losses = {
        stage: [(row["step"], row["loss"]) for row in of_stage if {"step", "loss"} <= row.keys()]
        for stage, of_stage in logged.items()
    }
    return TrialRun(name, folder, settings, metrics, losses, _status(folder, record, settings, results, logged))


def _settings(folder: pathlib.Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Of the resolved configuration: of the run, else of a stage; of the sweep where there is none yet."""
    # The last stage first: the ones before it may be links into another run, with another configuration.
    stages = [record["stage"]] if record.get("stage") else reversed(STAGES)
    files = [folder / "config.gin", *(folder / stage / "config.gin" for stage in stages)]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return {key: repr(value) for key, value in record.get("parameters", {}).items()}
    return read_resolved(file.read_text(encoding="utf-8"))


def _results(folder: pathlib.Path) -> dict[str, Any]:
    """Of results.json, else what the phases have left so far."""
    if (folder / "results.json").exists():
        return _json(folder / "results.json")
    results: dict[str, Any] = {"seconds": {}}
    for file in sorted(folder.glob("phases/*.json")):
        phase = _json(file)
        results["seconds"][file.stem] = phase.get("seconds")
        if file.stem.startswith("evaluate_"):
            results[file.stem.removeprefix("evaluate_")] = phase.get("result")
    return results


def _status(
    folder: pathlib.Path,
    record: Mapping[str, Any],
    settings: Mapping[str, str],
    results: Mapping[str, Any],
    logged: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    asked = (
        [record["stage"]] if record.get("stage") else re.findall(r"@(\w+)/Training\(\)", settings.get("run.stages", ""))
    )
    if not asked:
        asked = [stage for stage in STAGES if (folder / stage).is_dir()]
    if not asked:
        return "not started"
    for stage in asked:
        if (folder / stage / "finished.json").exists():
            continue
        if stage not in logged:
            return f"{stage} has not started" if (folder / stage).exists() or stage != asked[0] else "not started"
        step = f"{logged[stage][-1].get('step', 0):.0f}"
        return f"{stage} at step {step} of {settings.get(f'{stage}/Training.steps', '?')}"
    if record.get("stage"):
        return "finished"
    scored = [*asked, *(["merged"] if {"contextual", "triplet"} <= {*asked} else [])]
    missing = [stage for stage in scored if stage not in results]
    if missing:
        return f"{missing[0]} has not been scored"
    return "finished" if (folder / "results.json").exists() else "all is scored, the rest under way"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield from numbers({f"{prefix}{name}": value}).items()


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); delete it and launch the trial again") from None
