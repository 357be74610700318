"""What a recipe may name. Adding a bindable class or function is one line here."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.resume_check import may_differ as is_changeable

# The one top-level function of each verb: where a recipe begins.
VERBS = (
    "pplx_jax.recipes.recipe:run",
    "pplx_jax.recipes.recipe:train_stage",
    "pplx_jax.checkpoints.merge_folders:merge_checkpoints",
    "pplx_jax.plan.plan_stage:plan_stage",
    "pplx_jax.export.import_hf:import_hf",
    "pplx_jax.export.export_hf:export_hf",
    "pplx_jax.retrieval.embed_file:embed_file",
    "pplx_jax.serving.server:serve",
    "pplx_jax.retrieval.build_index:build_index",
    "pplx_jax.retrieval.search_verb:search_index",
    "pplx_jax.evaluation.evaluate:evaluate_task",
    "pplx_jax.mining.mine:mine_file",
    "pplx_jax.recipes.data_verbs:cache_corpus",
    "pplx_jax.recipes.data_verbs:report_corpus",
    "pplx_jax.recipes.sweep_report:report_trials",
)

# The dataclasses that those functions are given, directly or inside one another.
PARTS = (
    "pplx_jax.models.transformer:Qwen3Config",
    "pplx_jax.models.term_weights:TermWeights",
    "pplx_jax.training.optimizers:Optimizer",
    "pplx_jax.parallel.mesh:Mesh",
    "pplx_jax.parallel.processes:Processes",
    "pplx_jax.training.settings:Training",
    "pplx_jax.training.settings:Checkpointing",
    "pplx_jax.training.settings:Logging",
    "pplx_jax.data.tokens.lengths:Lengths",
    "pplx_jax.training.stages.diffusion:DiffusionStage",
    "pplx_jax.training.stages.pair:PairStage",
    "pplx_jax.training.stages.contextual:ContextualStage",
    "pplx_jax.training.stages.triplet:TripletStage",
    "pplx_jax.checkpoints.merge:Merge",
    "pplx_jax.mining.choice:Mining",
    "pplx_jax.recipes.corpora.python_corpus:PythonCorpus",
    "pplx_jax.data.sources.folder_corpus:FolderCorpus",
    "pplx_jax.recipes.corpora.multilingual_corpus:MultilingualCorpus",
    "pplx_jax.data.sources.source_corpus:SourceCorpus",
    "pplx_jax.data.sources.source:Source",
    "pplx_jax.data.sources.mixture:Mixture",
    "pplx_jax.data.sources.mixture:Curriculum",
)

__all__ = ["PARTS", "VERBS", "Table", "is_changeable"]


def _by_name(paths: tuple[str, ...]) -> dict[str, str]:
    return {path.partition(":")[2]: path for path in paths}


@dataclasses.dataclass(frozen=True)
class Table:
    """Names a recipe may use, each with the "module:Name" it stands for; modules are imported when needed.

    Attributes:
        verbs: top-level functions, the roots of every recipe.
        parts: classes (or functions) that bindings refer to.
    """

    verbs: Mapping[str, str] = dataclasses.field(default_factory=lambda: _by_name(VERBS))
    parts: Mapping[str, str] = dataclasses.field(default_factory=lambda: _by_name(PARTS))

    @classmethod
    def of(cls, verbs: tuple[str, ...], parts: tuple[str, ...] = ()) -> "Table":
        """Builds a table from "module:Name" strings."""
        return cls(_by_name(verbs), _by_name(parts))

    @property
    def names(self) -> list[str]:
        """Every name, verbs first."""
        return [*self.verbs, *self.parts]

    def with_part(self, path: str) -> "Table":
        """Adds one "module:Name"."""
        return dataclasses.replace(self, parts={**self.parts, **_by_name((path,))})

    def target(self, name: str) -> Callable[..., Any]:
        """Imports what `name` stands for.

        Raises:
            BadInput: it needs a package that is not installed, or the module has no such name.
        """
        module, _, attribute = (self.verbs.get(name) or self.parts[name]).partition(":")
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise BadInput(f"{name} needs the module {error.name}, which is not installed") from error
        if not hasattr(imported, attribute):
            raise BadInput(f"the module {module} has nothing called {attribute}")
        return getattr(imported, attribute)

    def parameters(self, name: str) -> Mapping[str, inspect.Parameter]:
        """The parameters of what `name` stands for, in the order of its signature."""
        return inspect.signature(self.target(name)).parameters
