"""The short names of the project's own classes and functions. A recipe imports everything else (`names`)."""

import importlib
from typing import Any, NamedTuple

from pplx_jax.core.errors import BadInput

# Where a recipe starts. The command line adds the functions of its other verbs (`cli.verbs`).
VERBS = ("pplx_jax.recipes.recipe:run",)

# The classes that a recipe refers to.
PARTS = (
    "pplx_jax.models.transformer:Qwen3Config",
    "pplx_jax.models.term_weights:TermWeights",
    "pplx_jax.training.optimizers:Optimizer",
    "pplx_jax.parallel.mesh:Mesh",
    "pplx_jax.parallel.processes:Processes",
    "pplx_jax.training.settings:Training",
    "pplx_jax.training.settings:Checkpointing",
    "pplx_jax.training.settings:Logging",
    "pplx_jax.training.settings:Evaluation",
    "pplx_jax.training.metrics_writers:TensorBoard",
    "pplx_jax.training.metrics_writers:WeightsAndBiases",
    "pplx_jax.data.tokens.lengths:Lengths",
    "pplx_jax.training.stages.diffusion:DiffusionStage",
    "pplx_jax.training.stages.autoregressive:AutoregressiveStage",
    "pplx_jax.training.stages.masked_lm:MaskedLMStage",
    "pplx_jax.training.stages.masked_next_token:MaskedNextTokenStage",
    "pplx_jax.training.stages.pair:PairStage",
    "pplx_jax.training.stages.contextual:ContextualStage",
    "pplx_jax.training.stages.triplet:TripletStage",
    "pplx_jax.checkpoints.merge:Merge",
    "pplx_jax.mining.choice:Mining",
    "pplx_jax.recipes.corpora.python_corpus:PythonCorpus",
    "pplx_jax.data.sources.folder_corpus:FolderCorpus",
    "pplx_jax.recipes.corpora.multilingual_corpus:MultilingualCorpus",
    "pplx_jax.recipes.corpora.docs_corpus:DocsCorpus",
    "pplx_jax.data.sources.source_corpus:SourceCorpus",
    "pplx_jax.data.sources.seqio_corpus:SeqioCorpus",
    "pplx_jax.data.sources.source:Source",
    "pplx_jax.data.sources.mixture:Mixture",
    "pplx_jax.data.sources.mixture:Curriculum",
)


class Table(NamedTuple):
    """Short names, each as the "module:Name" it stands for. A module is imported when a recipe mentions the name.

    Attributes:
        verbs: functions of the command line, where a recipe starts.
        parts: classes (or functions) that bindings refer to.
    """

    verbs: tuple[str, ...] = VERBS
    parts: tuple[str, ...] = PARTS

    def target(self, name: str) -> Any:
        """Imports what a short name stands for.

        Raises:
            BadInput: a module is not installed, or has no such name.
        """
        path = next(path for path in (*self.verbs, *self.parts) if path.endswith(f":{name}"))
        return import_name(*path.split(":"))


def import_name(module: str, name: str = "") -> Any:
    """Imports a module, or the class, function or submodule `name` of it.

    Raises:
        BadInput: a module is not installed, or has no such name.
    """
    try:
        imported = importlib.import_module(module)
        if not name or hasattr(imported, name):
            return getattr(imported, name) if name else imported
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if not name and error.name == module:
            raise BadInput(f"the module {module} is not installed") from error
        if error.name == f"{module}.{name}":
            raise BadInput(f"the module {module} has nothing called {name}") from None
        raise BadInput(f"{name or module} needs the module {error.name}, which is not installed") from error
