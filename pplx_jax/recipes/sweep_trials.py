"""The runs of a sweep, finished or not, read from their workdirs."""

import ast
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pplx_jax.checkpoints.merge import Merge
from pplx_jax.checkpoints.merge_folders import MERGED
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.core.paths import as_path
from pplx_jax.core.resolved_recipe import read_resolved, with_macro_values
from pplx_jax.reports.run import configured_stages, numbers, stages_of
from pplx_jax.reports.sweep_page import TrialRun
from pplx_jax.training.metrics import read_metrics

_MARKS = ("trial.json", "recipe.json", "results.json")  # a folder with any of them is the workdir of a run


def find_trials(folders: Sequence[pathlib.Path]) -> list[TrialRun]:
    """Returns the runs in `folders`: each folder is the workdir of a run or contains such workdirs.

    Raises:
      BadInput: a folder does not exist or contains no run, or a file in a run is damaged.
    """
    found: list[TrialRun] = []
    for folder in map(as_path, folders):
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}: give the workdir of a run, or of a sweep")
        if _is_run(folder):
            runs = [folder]
        else:
            runs = sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child))
        if not runs:
            raise BadInput(f"{folder} holds no run: no {' or '.join(_MARKS)} in it or in a folder directly below it")
        names = [str(run) if len(folders) > 1 or run == folder else run.name for run in runs]
        found += [_read(name, run) for name, run in zip(names, runs, strict=True)]
    return found


def differing_settings(trials: Sequence[TrialRun]) -> list[str]:
    """Returns the names of bindings that differ between trials, in the order of the runs' configurations."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    return [key for key in keys if len({trial.settings[key] for trial in trials if key in trial.settings}) > 1]


def _is_run(folder: pathlib.Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _read(name: str, folder: pathlib.Path) -> TrialRun:
    record, results = _json(folder / "trial.json"), _results(folder)
    stages = stages_of(folder, results)
    settings = _settings(folder, record, stages)
    rows = {stage: [numbers(row) for row in read_metrics(folder / stage / "metrics.jsonl")] for stage in stages}
    logged = {stage: of_stage for stage, of_stage in rows.items() if of_stage}
    metrics = dict(_flat(results))
    for stage, of_stage in logged.items():
        metrics |= {f"{stage}.{metric}": value for metric, value in of_stage[-1].items() if metric != "step"}
    losses = {
        stage: [(row["step"], row["loss"]) for row in of_stage if {"step", "loss"} <= row.keys()]
        for stage, of_stage in logged.items()
    }
    status = _status(folder, record, settings, stages, results, logged)
    return TrialRun(name, folder, settings, metrics, losses, status, stages)


def _settings(folder: pathlib.Path, record: Mapping[str, Any], stages: Sequence[str]) -> dict[str, str]:
    """Returns the resolved configuration of the run, else of its last stage, else the sweep's parameters."""
    # The last stage first: the ones before it may be links into another run, with another configuration.
    last_first = [record["stage"]] if record.get("stage") else reversed(stages)
    files = [folder / "config.gin", *(folder / stage / "config.gin" for stage in last_first)]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return {key: repr(value) for key, value in record.get("parameters", {}).items()}
    return read_resolved(file.read_text(encoding="utf-8"))


def _results(folder: pathlib.Path) -> dict[str, Any]:
    """Returns results.json, or else the results of the phases that are done."""
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
    stages: Sequence[str],
    results: Mapping[str, Any],
    logged: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    settings = with_macro_values(settings)
    requested = [record["stage"]] if record.get("stage") else configured_stages(settings.get("run.stages", ""))
    requested = requested or [stage for stage in stages if (folder / stage).is_dir()]
    if not requested:
        return "not started"
    for stage in requested:
        if (folder / stage / "finished.json").exists():
            continue
        if stage not in logged:
            return f"{stage} has not started" if (folder / stage).exists() or stage != requested[0] else "not started"
        step = f"{logged[stage][-1].get('step', 0):.0f}"
        return f"{stage} at step {step} of {settings.get(f'{stage}/Training.steps', '?')}"
    if record.get("stage"):
        return "finished"
    merges = ast.literal_eval(settings.get("Merge.stages", repr(Merge().stages)))
    scored = [*requested, *([MERGED] if {*merges} <= {*requested} else [])]
    missing = [stage for stage in scored if stage not in results]
    if missing:
        return f"{missing[0]} has not been scored"
    return "finished" if (folder / "results.json").exists() else "all models are scored, other phases are in progress"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield from numbers({f"{prefix}{name}": value}).items()


def _json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, fix="delete it and launch the trial again") if path.exists() else {}
