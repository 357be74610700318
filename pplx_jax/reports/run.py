"""The parts of a run that its report is made of, read from a work folder; whatever is missing is left out."""

import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.training.metrics import read_metrics

UNTRAINED = ("random", "initial")
STAGES = (*UNTRAINED, "diffusion", "pair", "contextual", "triplet", "merged")
PRECISIONS = ("float", "int8", "binary")
METRICS = {"ndcg@10": "nDCG@10", "recall@100": "Recall@100"}
_CONTEXT = {"with_context": "contextual, in context", "without_context": "contextual, alone"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, whole or partial.

    Attributes:
        name: of the work folder.
        results: the content of results.json.
        losses: stage -> [(step, loss)] in order of steps.
        configs: stage -> resolved configuration, as text.
        compile_seconds: phase -> the part of its seconds that was compilation.
        counts: of the corpus.
        environment: name -> value.
    """

    name: str
    results: Mapping[str, Any]
    losses: Mapping[str, list[tuple[float, float]]]
    configs: Mapping[str, str]
    compile_seconds: Mapping[str, float]
    counts: Mapping[str, Any]
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results: precision -> metric -> value. BM25 has no precision and stands under "float".

    A baseline is not trained; a variant is another way to use a stage that has its own line.
    """

    name: str
    values: Mapping[str, Mapping[str, float]]
    is_baseline: bool = False
    is_variant: bool = False

    def value(self, precision: str, metric: str) -> float | None:
        """The number, or None where it was not measured."""
        number = self.values.get(precision, {}).get(metric)
        return number if _is_number(number) else None

    def main(self, metric: str) -> float | None:
        """The int8 number, which is what the model is used with; where there is none, the float one."""
        number = self.value("int8", metric)
        return self.value("float", metric) if number is None else number


def result_rows(results: Mapping[str, Any]) -> list[Row]:
    """Lines of the table in the order of training, baselines first."""
    rows = []
    if isinstance(results.get("bm25"), Mapping):
        rows.append(Row("BM25", {"float": results["bm25"]}, is_baseline=True))
    for stage in STAGES:
        entry = results.get(stage)
        if not isinstance(entry, Mapping):
            continue
        scored_alone = any(precision in entry for precision in PRECISIONS)
        if scored_alone:
            rows.append(Row(stage, entry, is_baseline=stage in UNTRAINED))
        rows += [row for row in context_rows(entry) if not (scored_alone and row.name == _CONTEXT["without_context"])]
    return rows


def context_rows(stage: Mapping[str, Any]) -> list[Row]:
    """The contextual stage's lines with and without context, whether by precision or as two numbers each."""
    rows = []
    for key, title in _CONTEXT.items():
        values = stage.get(key)
        if isinstance(values, Mapping):
            by_precision = any(precision in values for precision in PRECISIONS)
            rows.append(Row(title, values if by_precision else {"int8": values}, is_variant=True))
    return rows


def set_rows(results: Mapping[str, Any], metric: str = "ndcg@10") -> tuple[list[str], list[tuple[str, list]]]:
    """Titles of the lines of `result_rows`, and for each set evaluated on its main number of each of them."""
    titles = [row.name for row in result_rows(results)]
    entries = [entry for name in ("bm25", *STAGES) if isinstance(entry := results.get(name), Mapping)]
    names = list(dict.fromkeys(name for entry in entries for name in entry.get("sets", ())))
    body = []
    for name in names:
        of_set = {key: entry["sets"][name] for key, entry in results.items() if _has_set(entry, name)}
        values = {row.name: row.main(metric) for row in result_rows(of_set)}
        body.append((name, [values.get(title) for title in titles]))
    return titles, body


def _has_set(entry: Any, name: str) -> bool:
    return isinstance(entry, Mapping) and name in entry.get("sets", ())


def collect(workdir: pathlib.Path) -> Run:
    """Reads what is there of a run.

    Raises:
        BadInput: there is no such folder, or results.json in it is damaged.
    """
    if not workdir.is_dir():
        raise BadInput(f"no folder {workdir}: give the --workdir of a run")
    results = _read_json(workdir / "results.json")
    folders = [name for name in STAGES if (workdir / name).is_dir()]
    losses = {name: _losses(workdir / name / "metrics.jsonl") for name in folders}
    configs = {name: workdir / name / "config.gin" for name in folders}
    if (workdir / "config.gin").exists():
        configs = {"run": workdir / "config.gin", **configs}
    return Run(
        name=workdir.resolve().name,
        results=results,
        losses={name: points for name, points in losses.items() if points},
        configs={name: path.read_text(encoding="utf-8") for name, path in configs.items() if path.exists()},
        compile_seconds={name: seconds for name in folders if (seconds := _compile_seconds(workdir / name))},
        counts=_read_json(workdir / "data" / "corpus" / "counts.json"),
        environment=results.get("environment") or environment(),
    )


def environment() -> dict[str, str]:
    """The device and the versions at work, as a run should record them in results.json."""
    import jax  # starts the devices, which only a report that needs them should do

    devices = jax.devices()
    found = {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processes": str(jax.process_count()),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def numbers(values: Any) -> dict[str, float]:
    """The entries of a mapping that are finite numbers; none where it is no mapping."""
    found = values if isinstance(values, Mapping) else {}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _losses(path: pathlib.Path) -> list[tuple[float, float]]:
    found = (numbers(row) for row in read_metrics(path))
    return [(row["step"], row["loss"]) for row in found if "step" in row and "loss" in row]


def _compile_seconds(stage: pathlib.Path) -> float:
    return numbers(_read_json(stage / "finished.json")).get("compile_seconds", 0.0)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, fix="delete it and run again") if path.exists() else {}
