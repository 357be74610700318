"""What the trials of a sweep can link from another run: the data, and the stages with the same settings."""

import dataclasses
import pathlib
from collections.abc import Mapping

from pplx_jax.configuration import Config, load
from pplx_jax.core.errors import BadInput

_DATA_PHASES = ("corpus", "vocabulary", "tokenize", "evaluate_bm25", "evaluate_random", "evaluate_initial")
_DATA_FILES = ("data/corpus", "data/vocabulary.model", "data/vocabulary.json", "data/tokenizer.json")
_MINED = ("data/tokens/triplet", "phases/mine.json")
# Settings outside the stages that no stage's numbers depend on.
_WITHOUT_EFFECT = ("Mesh.", "Merge.", "run.mesh", "run.merge", "run.mining", "run.stages")


@dataclasses.dataclass(frozen=True)
class SharedPhases:
    """Links into an existing run.

    Attributes:
      base: the workdir of that run.
      links: paths in it that a trial links to, if they exist.
      stages: trained stages among them.
    """

    base: str
    links: tuple[str, ...]
    stages: tuple[str, ...]

    @classmethod
    def of(cls, base: str, trial: Config, stage: str | None = None) -> "SharedPhases":
        """Returns what a trial may link from the run in `base`.

        Args:
          base: a workdir of `run`, readable on this machine.
          trial: the recipe of the trial.
          stage: the only stage that it trains, or None.

        Raises:
          BadInput: `base` is not a run, or differs from the trial in a setting that every stage depends on.
        """
        config_file = pathlib.Path(base) / "config.gin"
        if not config_file.exists():
            raise BadInput(f"--base={base}: it has no config.gin; give the path of a run's workdir on this machine")
        changed = _changed(load([str(config_file)]), trial)
        for key in sorted(changed):
            if "/" not in key and not key.startswith((*_WITHOUT_EFFECT, "Mining.")):
                raise BadInput(f"--base={base}: the trials differ from it in {key}, which every stage depends on")

        redone = {key.split("/")[0] for key in changed if "/" in key} | ({stage} if stage else set())
        if any(key.startswith("Mining.") for key in changed):
            redone.add("triplet")
        starts_from = {one.stage.name: one.earlier_stage for one in trial.arguments["run"]["stages"]}
        kept = [name for name in starts_from if not redone & {name, *_earlier(name, starts_from)}]
        mined = "pair" in kept and not any(key.startswith("Mining.") for key in changed)
        corpus = trial.arguments["run"].get("corpus")
        declared = corpus is not None and corpus.declares_triplets()
        phases = [*_DATA_PHASES, *kept, *(f"{of}_{name}" for of in ("evaluate", "masked_tokens") for name in kept)]
        links = (
            *_DATA_FILES,
            *(f"data/tokens/{name}" for name in starts_from if name != "triplet"),
            *kept,
            *(f"phases/{phase}.json" for phase in phases),
            *(_MINED if mined or declared else ()),
        )
        return cls(base, links, tuple(kept))


def _earlier(stage: str, starts_from: Mapping[str, str | None]) -> list[str]:
    """Returns the stages that `stage` starts from, directly or not."""
    before = starts_from.get(stage)
    return [] if before is None else [before, *_earlier(before, starts_from)]


def _changed(one: Config, other: Config) -> set[str]:
    """Returns the settings that differ, including all settings of a stage that only one of the two has."""
    a, b = one.settings, other.settings
    return {key for key in a.keys() | b.keys() if key not in a or key not in b or a[key].value != b[key].value}
