"""What the data verbs take from a recipe: its sources and its vocabulary, without running it."""

import dataclasses
import pathlib
from typing import Any

from pplx_jax.data.source import Source
from pplx_jax.data.source_corpus import SourceCorpus, corpus_sources
from pplx_jax.data.vocabulary import FILE_NAME, TOKENIZER, Vocabulary
from pplx_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class RecipeData:
    """Sources and vocabulary of a recipe.

    Attributes:
        sources: declared, or the files that the corpus wrote.
        vocabulary: of the model.
        evaluation: the folder of the evaluation set, or of several.
    """

    sources: list[Source]
    vocabulary: Vocabulary
    evaluation: pathlib.Path


def recipe_data(workdir: pathlib.Path, corpus: Any, initial: str | None, vocabulary: pathlib.Path | None) -> RecipeData:
    """Finds them, and builds the corpus in WORKDIR/data/corpus where that has not been done.

    Args:
        workdir: of the recipe.
        corpus: of the recipe.
        initial: a model folder whose vocabulary is used where `vocabulary` is None.
        vocabulary: a vocabulary file or a folder that holds one.

    Raises:
        BadInput: there is no vocabulary.
    """
    data = pathlib.Path(workdir) / "data"
    if vocabulary is None and not initial and not any((data / name).exists() for name in (FILE_NAME, TOKENIZER)):
        raise BadInput(f"no vocabulary in {data}; run the recipe first, or give --vocabulary")
    found = Vocabulary.load(vocabulary or initial or data)
    folder = data / "corpus"
    if isinstance(corpus, SourceCorpus):
        evaluation = pathlib.Path(corpus.evaluation)
    else:
        evaluation = folder / "evaluation"
        if not folder.exists():
            corpus.build(folder)
    return RecipeData(corpus_sources(corpus, folder), found, evaluation)
