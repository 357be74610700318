"""The verb `experiment`: runs a folder of recipes, the arms, with several seeds, and compares their scores.

WORKDIR/SET/ARM/seed-N              the workdir of one run
WORKDIR/SET/results.json, table.txt, report.html   the comparison, written again after each run
"""

import dataclasses
import gc
import glob
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from pplx_jax.checkpoints.initial_model import model_to_train
from pplx_jax.checkpoints.merge import Merge
from pplx_jax.checkpoints.merge_folders import MERGED, merge_checkpoints
from pplx_jax.checkpoints.saved_params import keep_parameters
from pplx_jax.configuration import Config, load
from pplx_jax.configuration.statements import SEARCH_PATHS
from pplx_jax.core.errors import BadInput, Failed
from pplx_jax.core.files import read_json_if_valid, write_json, write_text
from pplx_jax.core.paths import as_path, require_local
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.mining.choice import Mining
from pplx_jax.recipes.experiment_results import compare_arms, format_comparison
from pplx_jax.recipes.experiment_scores import score_arm
from pplx_jax.recipes.recipe import phase_settings, run
from pplx_jax.recipes.shared_phases import link_phases, phases_before
from pplx_jax.reports.experiment_page import render_experiment

FINISHED, SCORES, PREDICTIONS = "arm.json", "scores", "predictions.md"
_SHARED_ARGUMENTS = (
    *("corpus", "lengths", "stages", "model", "initial", "term_weights", "mining", "merge", "seed", "prompts"),
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recipe of a set.

    Attributes:
      name: of its file, without the ending.
      file: the gin file, as `load` finds it.
      about: its first comment.
    """

    name: str
    file: str
    about: str


def run_experiment(
    workdir: pathlib.Path,
    experiments: str,
    seeds: Sequence[int] = (0, 1),
    arms: Sequence[str] = (),
    gin_files: Sequence[str] = (),
    gin_params: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs every arm of a set with every seed, one after another, scores the models and compares them.

    An arm ends at its last stage, or with the merge if its recipe has both stages of the merge. That model is scored.
    Phases with equal settings (the data, the first stages) are done once for all runs in the workdir. The same command
    skips finished runs and resumes an interrupted one. Finished stages keep their parameters and not the optimizer. The
    comparison has all finished runs of the set, also those of earlier commands with other arms and seeds.

    Args:
      workdir: a local folder for all sets and seeds.
      experiments: the set, a folder of gin files, found like a recipe. The arms have the order of the files' names, and
        the first one is the baseline.
      seeds: values of `run.seed`. They are run in this order: all arms with the first one, then the next one.
      arms: names of the arms to run; all if empty. The baseline is always run.
      gin_files, gin_params: read after the file of each arm, such as a larger size.
      dry_run: whether to return what would be run, and do nothing.

    Returns:
      {"results", "report", "table"}, or {"runs": [{"arm", "seed", "stages", "about"}]} in a dry run.

    Raises:
      BadInput: a wrong argument or recipe; another process runs experiments in the workdir.
      Failed: an arm failed. The other arms have run, and the comparison is written.
    """
    known = find_arms(experiments)
    chosen = _chosen(known, arms)
    configs = {(seed, arm): _load(arm, seed, gin_files, gin_params) for seed in seeds for arm in chosen}
    if not configs:
        raise BadInput("--seeds is empty; give one or several, such as 0,1")
    if dry_run:
        return {"runs": [_described(arm, seed, config) for (seed, arm), config in configs.items()]}
    root = pathlib.Path(require_local(workdir, "give a folder of this machine, and run arms for a bucket with `run`"))
    folder = root / pathlib.Path(experiments).name
    failures, written = {}, {}
    root.mkdir(parents=True, exist_ok=True)
    with sole_owner(root):
        for seed, arm in configs:
            place = folder / arm.name / f"seed-{seed}"
            try:
                # gin keeps the bindings of the recipe that was loaded last.
                _run_arm(place, root, _load(arm, seed, gin_files, gin_params))
            except Failed as error:
                logging.error("%s: %s", place, error)
                failures[f"{arm.name}, seed {seed}"] = str(error)
            finally:
                jax.clear_caches()
                gc.collect()
            written = _compare(folder, _finished(folder, known, gin_files, gin_params), known, experiments)
    if failures:
        raise Failed("; ".join(f"{name}: {message}" for name, message in failures.items()))
    return written


def find_arms(experiments: str) -> list[Arm]:
    """Returns the arms of a set, in order.

    Raises:
      BadInput: there is no such folder, or it has no gin file.
    """
    folder = next((path / experiments for path in SEARCH_PATHS if (path / experiments).is_dir()), None)
    files = [] if folder is None else sorted(folder.glob("*.gin"))
    if not files:
        raise BadInput(f"--set {experiments}: no folder with gin files; see gin/experiments for examples")
    return [Arm(file.stem, f"{experiments.rstrip('/')}/{file.name}", _about(file)) for file in files]


def _about(file: pathlib.Path) -> str:
    """Returns the first paragraph of comments of a file, on one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    return " ".join(lines)


def _chosen(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    known = [arm.name for arm in arms]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--arms {unknown[0]}: the set has {', '.join(known)}")
    return [arm for arm in arms if not names or arm.name in names or arm is arms[0]]


def _load(arm: Arm, seed: int, gin_files: Sequence[str], gin_params: Sequence[str]) -> Config:
    config = load((arm.file, *gin_files), (*gin_params, f"run.seed={seed}"))
    if not config.arguments["run"].get("stages"):
        raise BadInput(f"{arm.file} is not a recipe: nothing binds run.stages")
    return config


def _described(arm: Arm, seed: int, config: Config) -> dict[str, Any]:
    stages = ", ".join(f"{one.stage.name} ({one.steps} steps)" for one in config.arguments["run"]["stages"])
    return {"arm": arm.name, "seed": seed, "stages": stages, "about": arm.about}


def _run_arm(workdir: pathlib.Path, root: pathlib.Path, config: Config) -> None:
    """Trains and scores one arm with one seed, if that is not done."""
    done = read_json_if_valid(workdir / FINISHED)
    if done is not None and done.get("fingerprint") == config.fingerprint:
        return
    logging.info("%s", workdir)
    arguments = dict(config.arguments["run"])
    stages, names = arguments["stages"], [training.stage.name for training in arguments["stages"]]
    started, linked = time.monotonic(), _link(workdir, root, arguments)
    if linked:
        logging.info("taken from other runs: %s", ", ".join(f"{name} ({run})" for name, run in linked.items()))
    run(workdir, config.resolved(), **{**arguments, "until": names[-1], "scored": ()})
    model, merge = names[-1], arguments.get("merge") or Merge()
    if {*merge.stages} <= {*names}:
        first, second = (workdir / name for name in merge.stages)
        model = MERGED
        merge_checkpoints(first, second, workdir / MERGED, weight=merge.weight, per=merge.per)
    score_arm(workdir, workdir / model, workdir / SCORES, arguments["lengths"])
    for training in stages:
        if not (folder := workdir / training.stage.name).is_symlink():
            keep_parameters(folder)
    about = {"fingerprint": config.fingerprint, "model": model, "seconds": time.monotonic() - started}
    write_json(workdir / FINISHED, about)


def _link(workdir: pathlib.Path, root: pathlib.Path, arguments: Mapping[str, Any]) -> dict[str, str]:
    given: dict[str, Any] = {name: arguments.get(name) for name in _SHARED_ARGUMENTS}
    given["model"] = model_to_train(given["model"], given["initial"])
    given |= {"mining": given["mining"] or Mining(), "merge": given["merge"] or Merge()}
    before = phases_before(
        given["stages"], initial=given["initial"] is not None, weighted=given["term_weights"] is not None
    )
    others = sorted(path.parent for path in root.glob("*/*/*/phases") if path.parent != workdir)
    linked = link_phases(workdir, others, before, phase_settings(**given))
    return {name: str(other.relative_to(root)) for name, other in linked.items()}


def _finished(
    folder: pathlib.Path, arms: Sequence[Arm], gin_files: Sequence[str], gin_params: Sequence[str]
) -> dict[str, dict[int, pathlib.Path]]:
    """Returns the scores of the finished runs of a set by arm and seed; those of the first arm even if there are none.

    Runs with other settings than the recipes have now are left out.
    """
    found: dict[str, dict[int, pathlib.Path]] = {}
    for arm in arms:
        for done in folder.glob(f"{glob.escape(arm.name)}/seed-*/{FINISHED}"):
            seed = int(done.parent.name.removeprefix("seed-"))
            config = _load(arm, seed, gin_files, gin_params)
            if (read_json_if_valid(done) or {}).get("fingerprint") == config.fingerprint:
                found.setdefault(arm.name, {})[seed] = done.with_name(SCORES)
    ordered = {arm.name: dict(sorted(found[arm.name].items())) for arm in arms if arm.name in found}
    return {arms[0].name: {}} | ordered


def _compare(
    folder: pathlib.Path, scores: Mapping[str, Mapping[int, pathlib.Path]], arms: Sequence[Arm], experiments: str
) -> dict[str, Any]:
    """Writes the comparison of the finished runs."""
    compared = {
        "set": experiments,
        "seeds": sorted({seed for of_arm in scores.values() for seed in of_arm}),
        "about": {arm.name: arm.about for arm in arms if arm.name in scores},
        **compare_arms(scores),
    }
    table = format_comparison(compared)
    predictions = next(
        (path / experiments / PREDICTIONS for path in SEARCH_PATHS if (path / experiments / PREDICTIONS).exists()), None
    )
    page = render_experiment(compared, predictions.read_text(encoding="utf-8") if predictions else "")
    write_json(folder / "results.json", compared)
    write_text(folder / "table.txt", table)
    write_text(folder / "report.html", page)
    return {
        "results": str(as_path(folder / "results.json")),
        "report": str(folder / "report.html"),
        "table": f"\n{table}",
    }
