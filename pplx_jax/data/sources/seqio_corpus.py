"""A corpus of Tasks and Mixtures that are registered with SeqIO."""

import dataclasses
import functools
import importlib
import pathlib
import re
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.corpus import NO_PROMPTS, Corpus
from pplx_jax.data.sources.example_reader import TEACHER
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.kinds import FOLDERS


@dataclasses.dataclass(frozen=True)
class SeqioCorpus(Corpus):
    """Tasks and Mixtures of SeqIO as training data, and an evaluation set.

    A Mixture is one source with a part for each of its tasks; `Mixture.weights` of a stage samples them by their rates.
    Token ids are decoded by the vocabulary of the task, and tokenised with that of the run.

    Attributes:
        tasks: the kind of example -> the name of a Task or Mixture.
        evaluation: a BEIR folder, or a folder of several; it may be in a bucket.
        modules: modules to import first, which register the tasks.
        columns: field -> the feature that holds it, such as {'query': 'inputs', 'positive': 'targets'}. Only
            triplets have those of teacher scores.
        cache_dirs: folders of SeqIO's caches. A task that is cached there is read as it is.
        split: the split of all tasks.
        max_bad_share, search, tokens, drop_overlap: as in `Source` and `SourceCorpus`.
    """

    tasks: dict[str, str]
    evaluation: str
    modules: Sequence[str] = ()
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    cache_dirs: Sequence[str] = ()
    split: str = "train"
    max_bad_share: float = 0.0
    search: str = ""
    tokens: str = ""
    drop_overlap: bool = False

    sources_need_build = False

    def __post_init__(self):
        if not self.tasks or (unknown := [kind for kind in self.tasks if kind not in FOLDERS]):
            raise BadInput(
                f"SeqioCorpus.tasks={self.tasks}: {unknown[0] if self.tasks else 'empty'}; give a task for any of "
                f"{', '.join(FOLDERS)}"
            )

    @functools.cached_property
    def _declared(self) -> SourceCorpus:
        """The same sources and sets as a `SourceCorpus`. Imports the modules and names the caches to SeqIO."""
        for module in self.modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise BadInput(f"SeqioCorpus.modules: {module} cannot be imported: {error}") from error
        if self.cache_dirs:
            import seqio

            known = list(seqio.get_global_cache_dirs())
            seqio.set_global_cache_dirs([*known, *(one for one in self.cache_dirs if one not in known)])
        sources = [
            Source(
                name=re.sub(r"\W", "_", task, flags=re.ASCII),
                kind=kind,  # type: ignore[arg-type]
                path=task,
                format="seqio",
                split=self.split,
                columns={
                    field: name for field, name in self.columns.items() if kind == "triplet" or field not in TEACHER
                },
                max_bad_share=self.max_bad_share,
            )
            for kind, task in self.tasks.items()
        ]
        return SourceCorpus(
            sources=sources,
            evaluation=self.evaluation,
            search=self.search,
            tokens=self.tokens,
            drop_overlap=self.drop_overlap,
        )

    def build(self, output):
        return self._declared.build(output)

    def training_sources(self, folder):
        return self._declared.training_sources(folder)

    def evaluation_folder(self, folder) -> pathlib.Path:
        return self._declared.evaluation_folder(folder)

    def excluded_texts(self):
        return self._declared.excluded_texts()

    def declares_triplets(self):
        return "triplet" in self.tasks

    def tokenize(self, folder, vocabulary, tokens, lengths, prompts=NO_PROMPTS):
        return self._declared.tokenize(folder, vocabulary, tokens, lengths, prompts)
