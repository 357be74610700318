"""Takes finished phases of other runs into a run: links to their files instead of the same work again."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.files import read_json_if_valid, write_json
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.recipes.weighted_start import NAME as INITIAL
from pplx_jax.training.settings import Training

Settings = Mapping[str, Mapping[str, Any]]


def phases_before(stages: Sequence[Training], *, initial: bool, weighted: bool) -> dict[str, tuple[str, ...]]:
    """Returns the phases of a recipe until its last stage, each with the phases that its result depends on.

    Args:
      stages: of the recipe.
      initial: whether it starts from a given model, and trains no vocabulary.
      weighted: whether it has `run.term_weights`.
    """
    before: dict[str, tuple[str, ...]] = {"corpus": ()}
    if not initial:
        before["vocabulary"] = ("corpus",)
    before["tokenize"] = tuple(before)
    if weighted:
        before[INITIAL] = tuple(before)
    start = tuple(before)
    for training in stages:
        name, earlier = training.stage.name, training.earlier_stage
        of_stage = start + ((*before[earlier], earlier) if earlier in before else ())
        if training.stage.batch.kind == "triplet" and earlier in before:
            before["mine"] = tuple(dict.fromkeys(of_stage))
            of_stage += ("mine",)
        before[name] = tuple(dict.fromkeys(of_stage))
    return before


def link_phases(
    workdir: pathlib.Path, others: Sequence[pathlib.Path], before: Mapping[str, Sequence[str]], settings: Settings
) -> dict[str, pathlib.Path]:
    """Links each phase that another run has finished, if its settings and those of all phases before it are equal.

    Args:
      workdir: of the run, a local folder. Phases that it has finished or begun stay as they are.
      others: workdirs of other runs.
      before: what `phases_before` returns.
      settings: by phase, as the run will save them.

    Returns:
      The phases that were linked, each with the run that has done it.
    """
    linked: dict[str, pathlib.Path] = {}
    for name, depends in before.items():
        marker = _marker(workdir, name)
        if marker.exists():
            continue
        wanted = {phase: _plain(settings.get(phase, {})) for phase in (*depends, name)}
        for other in others:
            if wanted == {phase: _settings(other, phase) for phase in wanted} and _link(other, workdir, name):
                marker.parent.mkdir(parents=True, exist_ok=True)
                write_json(marker, read_json_if_valid(_marker(other, name)))
                linked[name] = other
                break
    return linked


def _marker(workdir: pathlib.Path, phase: str) -> pathlib.Path:
    return workdir / "phases" / f"{phase}.json"


def _settings(workdir: pathlib.Path, phase: str) -> Any:
    """Returns the settings of a finished phase; None if it is not finished."""
    return (read_json_if_valid(_marker(workdir, phase)) or {}).get("settings")


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def _link(other: pathlib.Path, workdir: pathlib.Path, phase: str) -> bool:
    """Links what a phase of another run wrote. Returns False if this run has begun the phase itself,
    or if the other run names outputs outside its folder."""
    outputs = [other / path for path in (read_json_if_valid(_marker(other, phase)) or {}).get("writes", ())]
    if any(os.path.relpath(path, other).startswith("..") for path in outputs):  # not what that run wrote
        return False
    mined = (read_json_if_valid(_marker(other, "mine")) or {}).get("result") or {}
    declared = "declared" in mined
    if phase == "mine" and declared:
        return True
    if phase == "tokenize":  # the mined triplets are in the same folder
        inside = [path for folder in outputs for path in sorted(folder.iterdir())]
        outputs = [path for path in inside if declared or not path.name.startswith(FOLDERS["triplet"])]
    links = {workdir / path.relative_to(other): path.resolve() for path in outputs}
    if any(link.exists() and not link.is_symlink() for link in links):
        return False
    for link, source in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # of a start that was killed before the phase was noted
        link.symlink_to(os.path.relpath(source, link.parent.resolve()))
    return True
