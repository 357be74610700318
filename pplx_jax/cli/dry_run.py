"""What `--dry_run` prints: the arguments of the call, the stages of a recipe, the files, the resolved recipe."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pplx_jax.cli.verb import Verb
from pplx_jax.core.paths import as_path

if TYPE_CHECKING:
    from pplx_jax.checkpoints.merge import Merge
    from pplx_jax.configuration import Config
    from pplx_jax.training.settings import Training

_SHOWN_SEPARATELY = ("config_text", "fingerprint", "stages")
STAGE_FILES = (
    "checkpoints/",
    "config.gin",
    "goodput.json",
    "metrics.jsonl",
    "model-info.txt",
    "model.json",
    "vocabulary.model",
)
RUN_FILES = ("results.json", "report.html")
MERGE_FILES = ("merged/", "export/", "embeddings/", "index/")


def describe(verb: Verb, arguments: Mapping[str, Any], config: "Config") -> dict[str, Any]:
    """Describes a call without making it.

    Returns:
        {"verb", "arguments": {name: text}, "stages": [{"stage", "steps", "batch_size", "row_length", "examples"}],
        "writes": [path], "fingerprint", "config": the resolved recipe as gin text}. "stages" only for a verb that
        trains.

    Raises:
        BadInput: the recipe does not have the requested stage.
    """
    described: dict[str, Any] = {
        "verb": verb.name,
        "arguments": {name: str(value) for name, value in arguments.items() if name not in _SHOWN_SEPARATELY},
    }
    writes = [str(arguments[name]) for name in verb.outputs if name in arguments]
    trains = "stages" in arguments and "workdir" in arguments and not verb.outputs  # `plan` has an output
    if trains:
        stages = _chosen(arguments["stages"], arguments.get("stage"), arguments.get("until"))
        described["stages"] = [_stage(training) for training in stages]
        workdir, names = as_path(arguments["workdir"]), [training.stage.name for training in stages]
        files = [f"{name}/{file}" for name in names for file in STAGE_FILES]
        if "stage" not in arguments:
            files += ["data/", *(RUN_FILES if stages else ())]
            if arguments.get("until") is None and _merges(arguments.get("merge"), names):
                files += MERGE_FILES
        writes += [str(workdir / file) for file in files]
    return {**described, "writes": writes, "fingerprint": config.fingerprint, "config": config.resolved()}


def _chosen(stages: "Sequence[Training]", name: str | None, until: str | None) -> "list[Training]":
    """Returns the stage `name`, or the stages up to `until` (none if it comes before the first), or all."""
    if until is not None:
        from pplx_jax.recipes.recipe import check_until

        names = [training.stage.name for training in stages]
        check_until(until, names)
        return list(stages[: names.index(until) + 1]) if until in names else []
    from pplx_jax.training.settings import chosen_stages

    return chosen_stages(stages, name)


def _merges(merge: "Merge | None", stages: Sequence[str]) -> bool:
    """Returns whether a recipe with these stages ends with a merge."""
    from pplx_jax.checkpoints.merge import Merge

    return {*(merge or Merge()).stages} <= {*stages}


def _stage(training: "Training") -> dict[str, Any]:
    stage = training.stage
    return {
        "stage": stage.name,
        "steps": training.steps,
        "batch_size": stage.batch.batch_size,
        "row_length": stage.batch.length,
        "examples": training.steps * stage.batch.batch_size,
    }
