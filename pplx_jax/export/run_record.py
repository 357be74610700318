"""Reads what the work folder of a run has recorded about a model: stages, data, settings and scores."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from pplx_jax.checkpoints.saved_params import selected_step
from pplx_jax.core.files import read_json
from pplx_jax.core.paths import resolved
from pplx_jax.core.resolved_recipe import read_resolved, with_macro_values
from pplx_jax.data.tokens.kinds import FOLDERS

_PREFIXES = re.compile(r"(\w+/)?\w+Stage\.prefixes")


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """A finished stage of a run.

    Attributes:
      name: of the stage.
      summary: what it trained on, in words.
      steps: number of steps behind its model.
      loss: the last one that was logged.
      examples: number of examples in its token table; None if it is not recorded.
      tokens: number of tokens in its token table; None if it is not recorded.
      lengths: maximum tokens of a text, by feature.
    """

    name: str
    summary: str
    steps: int
    loss: float | None
    examples: int | None
    tokens: int | None
    lengths: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run has recorded about a model. A field without a record is empty.

    Attributes:
      stages: finished stages that the parameters come from, in order.
      merged_from: the two merged stages, if the model is a merge.
      corpus: counts of the data.
      settings: the resolved recipe.
      scores: nested numbers of this run's evaluation of the model.
    """

    stages: tuple[TrainedStage, ...] = ()
    merged_from: tuple[str, ...] = ()
    corpus: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: str = ""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def untrained_prefixes(self) -> bool:
        """Whether the settings say that no contrastive stage trained a prefix of the dimensions (MRL)."""
        found = self._prefixes()
        return bool(found) and all(value.strip() in ("()", "[]") for value in found)

    @property
    def trained_prefixes(self) -> tuple[int, ...]:
        """The widths below that of the model that a contrastive stage trained, as far as the settings say."""
        return tuple(sorted({int(width) for value in self._prefixes() for width in re.findall(r"\d+", value)}))

    def _prefixes(self) -> list[str]:
        settings = with_macro_values(read_resolved(self.settings))
        return [value for key, value in settings.items() if _PREFIXES.fullmatch(key)]


def read_run(model_folder: pathlib.Path, stage: str, kind: str) -> RunRecord:
    """Reads the run that a model folder is a part of. A folder with another name than its stage is part of no run.

    Args:
      model_folder: of a stage or a merge.
      stage: the stage that wrote it.
      kind: "context_v1" takes the scores of chunks in their documents.

    Raises:
      BadInput: a record is damaged.
    """
    folder = resolved(model_folder)
    workdir = folder.parent
    lineage = _lineage(workdir, stage) if folder.name == stage else []
    if not lineage:
        return RunRecord()
    settings = next((path for path in (workdir / "config.gin", folder / "config.gin") if path.exists()), None)
    scores = _read(workdir / "results.json").get(stage, {})
    return RunRecord(
        merged_from=tuple(_read(folder / "model.json").get("merged_from", ())),
        stages=tuple(_stage(workdir, name) for name in lineage),
        corpus=_read(workdir / "data" / "corpus" / "counts.json"),
        settings=settings.read_text(encoding="utf-8") if settings else "",
        scores=scores.get("with_context", scores) if kind == "context_v1" else scores,
    )


def _lineage(workdir: pathlib.Path, name: str) -> list[str]:
    """Returns the finished stages that the parameters of a stage or a merge come from, the earliest first."""
    if merged_from := _read(workdir / name / "model.json").get("merged_from"):
        return list(dict.fromkeys(earlier for one in merged_from for earlier in _lineage(workdir, one)))
    if not (workdir / name / "finished.json").exists():
        return []
    starts_from = read_json(workdir / name / "finished.json").get("starts_from")
    return [*(_lineage(workdir, starts_from) if starts_from else ()), name]


def _stage(workdir: pathlib.Path, name: str) -> TrainedStage:
    finished = read_json(workdir / name / "finished.json")
    folder = FOLDERS[finished["reads"]] if "reads" in finished else name
    manifest = _read(workdir / "data" / "tokens" / folder / "manifest.json")
    ragged = [spec["shape"][0] for spec in manifest.get("features", {}).values() if spec["kind"] == "ragged"]
    lengths = manifest.get("lengths") or ({"text": manifest["length"]} if "length" in manifest else {})
    return TrainedStage(
        name=name,
        summary=finished.get("summary", ""),
        steps=selected_step(workdir / name) or finished["steps"],
        loss=finished.get("metrics", {}).get("loss"),
        examples=manifest.get("examples", manifest.get("count")),
        tokens=sum(ragged) if ragged else None,
        lengths=lengths,
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
