"""What the page of a run shows, read from its workdir; parts that are missing are left out."""

import dataclasses
import math
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.core.packages import installed_versions
from pplx_jax.core.paths import resolved
from pplx_jax.core.resolved_recipe import read_resolved, with_macro_values
from pplx_jax.training.metrics import read_metrics

EVALUATED = "eval/"  # metrics of evaluation during training begin with it
UNTRAINED = ("random", "initial")
PRECISIONS = ("float", "int8", "binary")
SETS = {"sets": "", "probes": " (probe)"}  # keys of results by set -> what is said after the name of a set
METRICS = {"ndcg@10": "nDCG@10", "recall@100": "Recall@100"}
_ALONE = "without_context"
_CONTEXT = {"with_context": "in context", _ALONE: "alone"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete or partial run.

    Attributes:
        name: of the workdir.
        stages: names of stages and merges, in order.
        results: the content of results.json.
        losses: stage -> [(step, loss)] in order of steps.
        evaluations: stage -> metric -> [(step, value)], of the evaluations while it trained.
        configs: stage -> resolved configuration, as text.
        compile_seconds: phase -> the part of its seconds that was compilation.
        counts: of the corpus.
        environment: name -> value.
    """

    name: str
    stages: Sequence[str]
    results: Mapping[str, Any]
    losses: Mapping[str, list[tuple[float, float]]]
    evaluations: Mapping[str, Mapping[str, list[tuple[float, float]]]]
    configs: Mapping[str, str]
    compile_seconds: Mapping[str, float]
    counts: Mapping[str, Any]
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A row of results: precision -> metric -> value. BM25 has no precision and is under "float".

    Attributes:
        name: of the row.
        values: the scores.
        stage: the name of the stage; empty for BM25.
        is_baseline: nothing was trained.
        is_variant: another way to use a stage that has a row of its own.
    """

    name: str
    values: Mapping[str, Mapping[str, float]]
    stage: str = ""
    is_baseline: bool = False
    is_variant: bool = False

    def value(self, precision: str, metric: str) -> float | None:
        """Returns the number, or None if it was not measured."""
        number = self.values.get(precision, {}).get(metric)
        return number if _is_number(number) else None

    def main(self, metric: str) -> float | None:
        """Returns the int8 number, the precision that the model is used with, or else the float one."""
        number = self.value("int8", metric)
        return self.value("float", metric) if number is None else number


def result_rows(results: Mapping[str, Any], stages: Sequence[str] = ()) -> list[ScoreRow]:
    """Returns the rows of the table: baselines first, then the stages in this order, then the order of the results."""
    rows = []
    if isinstance(results.get("bm25"), Mapping):
        rows.append(ScoreRow("BM25", {"float": results["bm25"]}, is_baseline=True))
    for name in dict.fromkeys([*UNTRAINED, *stages, *scored_stages(results)]):
        entry = results.get(name)
        if not isinstance(entry, Mapping):
            continue
        scored_alone = any(precision in entry for precision in PRECISIONS)
        if scored_alone:
            rows.append(ScoreRow(name, entry, name, is_baseline=name in UNTRAINED))
        # Without context is how the stage itself was scored, if it was.
        rows += [row for key, row in context_rows(name, entry).items() if not (scored_alone and key == _ALONE)]
    return rows


def scored_stages(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of stages and merges in the results: those of the recipe in its order, then others."""
    keys = {*PRECISIONS, *_CONTEXT}
    scored = [name for name, entry in results.items() if isinstance(entry, Mapping) and keys & entry.keys()]
    recorded = [name for name in _recorded(results) if name in scored]
    return [name for name in dict.fromkeys([*recorded, *scored]) if name not in UNTRAINED]


def context_rows(name: str, stage: Mapping[str, Any]) -> dict[str, ScoreRow]:
    """Returns the rows with and without context by key, whether scored by precision or as two numbers each."""
    rows = {}
    for key, title in _CONTEXT.items():
        values = stage.get(key)
        if isinstance(values, Mapping):
            by_precision = any(precision in values for precision in PRECISIONS)
            values = values if by_precision else {"int8": values}
            rows[key] = ScoreRow(f"{name}, {title}", values, name, is_variant=True)
    return rows


def set_rows(
    results: Mapping[str, Any], stages: Sequence[str] = (), metric: str = "ndcg@10"
) -> tuple[list[str], list[tuple[str, list]]]:
    """Returns the names of `result_rows`, and for each evaluation set and probe the main number of each of them."""
    titles = [row.name for row in result_rows(results, stages)]
    entries = {key: entry for key, entry in results.items() if isinstance(entry, Mapping)}
    names = dict.fromkeys((kind, name) for kind in SETS for entry in entries.values() for name in entry.get(kind, ()))
    body = []
    for kind, name in names:
        of_set = {key: entry[kind][name] for key, entry in entries.items() if name in entry.get(kind, ())}
        values = {row.name: row.main(metric) for row in result_rows(of_set)}
        body.append((f"{name}{SETS[kind]}", [values.get(title) for title in titles]))
    return titles, body


def masked_token_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns (stage, mask rate, loss, accuracy) of the stages that predict masked tokens, each before -> after."""
    return [
        (stage, f"{float(rate):.0%}", _change(values["loss"], 1, ""), _change(values["accuracy"], 100, "%"))
        for stage, entry in results.items()
        if isinstance(entry, Mapping)
        for rate, values in entry.get("masked_tokens", {}).items()
        if isinstance(values, Mapping)
    ]


def _change(values: Mapping[str, float], scale: int, unit: str) -> str:
    before, after, change, low, high = (values[name] * scale for name in ("before", "after", "change", "low", "high"))
    return f"{before:.3g}{unit} -> {after:.3g}{unit} ({change:+.2f} [{low:+.2f}, {high:+.2f}])"


def gain_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what each stage adds: (models compared, set, a sentence with the difference and its interval)."""
    return [(f"{row['of']} over {row['over']}", row["set"], _gain(row)) for row in results.get("gains", ())]


def _gain(row: Mapping[str, Any]) -> str:
    change, low, high = (row[name] for name in ("ndcg@10", "low", "high"))
    if low <= 0 <= high:
        return f"no difference that can be seen: {change:+.3f} [{low:+.3f}, {high:+.3f}]"
    if change > 0:
        return f"adds {change:.3f} [{low:.3f}, {high:.3f}]"
    return f"costs {-change:.3f} [{-high:.3f}, {-low:.3f}]"


def collect(workdir: pathlib.Path) -> Run:
    """Reads a run.

    Raises:
        BadInput: there is no such folder, or a file in it is damaged.
    """
    if not workdir.is_dir():
        raise BadInput(f"no folder {workdir}: give the --workdir of a run")
    results = _read_json(workdir / "results.json")
    stages = stages_of(workdir, results)
    folders = [name for name in stages if (workdir / name).is_dir()]
    curves = {name: _curves(workdir / name / "metrics.jsonl") for name in folders}
    evaluations = {
        stage: {name: points for name, points in found.items() if name.startswith(EVALUATED)}
        for stage, found in curves.items()
    }
    configs = {name: workdir / name / "config.gin" for name in folders}
    if (workdir / "config.gin").exists():
        configs = {"run": workdir / "config.gin", **configs}
    return Run(
        name=resolved(workdir).name,
        stages=stages,
        results=results,
        losses={stage: found["loss"] for stage, found in curves.items() if "loss" in found},
        evaluations={stage: found for stage, found in evaluations.items() if found},
        configs={name: path.read_text(encoding="utf-8") for name, path in configs.items() if path.exists()},
        compile_seconds={name: seconds for name in folders if (seconds := _compile_seconds(workdir / name))},
        counts=_read_json(workdir / "data" / "corpus" / "counts.json"),
        environment=results.get("environment") or environment(),
    )


def stages_of(workdir: pathlib.Path, results: Mapping[str, Any]) -> list[str]:
    """Returns the names of stages and merges: those of the recipe in its order, then other scored and trained ones."""
    config = workdir / "config.gin"
    recipe = [
        *_recorded(results),
        *_recorded(_read_json(workdir / "recipe.json")),
        *(_configured_in(config.read_text(encoding="utf-8")) if config.exists() else ()),
    ]
    trained = [file.parent.name for file in sorted(workdir.glob("*/metrics.jsonl"))]
    return list(dict.fromkeys([*recipe, *scored_stages(results), *trained]))


def _configured_in(config: str) -> list[str]:
    bound = re.search(r"^run\.stages = \[.*?\]", config, re.MULTILINE | re.DOTALL)
    return configured_stages(bound[0] if bound else with_macro_values(read_resolved(config)).get("run.stages", ""))


def configured_stages(value: str) -> list[str]:
    """Returns the names in the gin value of `run.stages`."""
    return re.findall(r"@(\w+)/Training\(\)", value)


def _recorded(content: Mapping[str, Any]) -> list[str]:
    """Returns the recipe's stages in a results.json or a recipe.json; [] if it has none."""
    stages = content.get("stages")
    return [name for name in stages if isinstance(name, str)] if isinstance(stages, list) else []


def environment() -> dict[str, str]:
    """Returns the devices and package versions in use, for results.json."""
    import jax  # starts the devices, which only a report that needs them should do

    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processes": str(jax.process_count()),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **installed_versions(_PACKAGES),
    }


def numbers(values: Any) -> dict[str, float]:
    """Returns the finite numbers among the values of a mapping; {} for anything else."""
    found = values if isinstance(values, Mapping) else {}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curves(path: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """Returns metric -> [(step, value)] of a log."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in map(numbers, read_metrics(path)):
        for name, value in row.items():
            if "step" in row and name != "step":
                found.setdefault(name, []).append((row["step"], value))
    return found


def _compile_seconds(stage: pathlib.Path) -> float:
    return numbers(_read_json(stage / "finished.json")).get("compile_seconds", 0.0)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, fix="delete it and run again") if path.exists() else {}
