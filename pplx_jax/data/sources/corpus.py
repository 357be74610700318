"""What a recipe needs from a corpus. To add a corpus, subclass `Corpus` or `WrittenCorpus` and bind it in gin:

from my_lab.corpora import MyCorpus
run.corpus = @MyCorpus()
"""

import abc
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.duplicates import Mode
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.seqio_tasks import tokenize_source, tokenize_sources
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.vocabulary import Vocabulary

_VOCABULARY_FIELDS = {"text": "text", "pair": "query"}  # kind -> the field that a vocabulary is trained on
NO_PROMPTS: Mapping[str, str] = types.MappingProxyType({})
_VOCABULARY_CHARACTERS = 100_000_000  # of each part of a source


class Corpus(abc.ABC):
    """Where the texts of a recipe come from: any number of declared sources.

    Attributes:
        sources_need_build: whether `training_sources` and `evaluation_folder` need what `build` writes.
    """

    sources_need_build: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, output: pathlib.Path) -> Mapping[str, Any]:
        """Prepares the corpus in the folder `output`, and returns counts.

        The folder must contain `search.jsonl`, the texts that a search of the finished run looks through, and
        `evaluation/`, a BEIR folder or a folder of them. It may contain `probes/NAME`, BEIR folders that are scored
        beside the evaluation sets and are in no mean. Files that the sources read may be anywhere.

        Raises:
            BadInput: the corpus is empty, or a file is missing.
        """

    @abc.abstractmethod
    def training_sources(self, folder: pathlib.Path) -> list[Source]:
        """Returns the sources to train on. `folder` is what `build` has written."""

    def evaluation_folder(self, folder: pathlib.Path) -> pathlib.Path:
        """Returns the BEIR folder, or the folder of several. `folder` is what `build` has written."""
        return folder / "evaluation"

    def excluded_texts(self) -> Overlap | None:
        """Returns what to leave out of the training texts; None for nothing."""
        return None

    def excluded_duplicates(self) -> Mode:
        """Returns which duplicates are left out of the training texts; "" for none."""
        return ""

    def declares_triplets(self) -> bool:
        """Returns whether the corpus has its own hard negatives. Then none are mined."""
        return False

    def file_digests(self) -> dict[str, str]:
        """Returns "files of SOURCE" -> digits that change with the files that tokenisation reads outside the run."""
        return {}

    def tokenize(
        self,
        folder: pathlib.Path,
        vocabulary: Vocabulary,
        tokens: pathlib.Path,
        lengths: Lengths,
        prompts: Mapping[str, str] = NO_PROMPTS,
    ) -> dict[str, Any]:
        """Writes the token tables TOKENS/KIND/SOURCE. `folder` is what `build` has written.

        `prompts` are those of the recipe, for sources that have none of their own. They are passed only if there are
        any.

        Returns:
            Number of examples by kind and source.
        """
        overlap = self.excluded_texts()
        drop = overlap.of if overlap else None
        sources = [source.with_prompts(prompts) for source in self.training_sources(folder)]
        options = {"drop": drop, "duplicates": self.excluded_duplicates()}
        return tokenize_sources(sources, vocabulary, tokens, lengths, **options)


class WrittenCorpus(Corpus):
    """A corpus whose `build` writes its training texts too, one file per kind of example:

    text.jsonl       {"text", "source"?, "language"?}
    pairs.jsonl      {"query", "document", "source"?, "language"?}
    documents.jsonl  {"id", "chunks": [...], "queries": [{"text", "chunk"}], "source"?, "language"?}
    """

    max_bad_share: ClassVar[float] = 0.001

    def training_sources(self, folder: pathlib.Path) -> list[Source]:
        columns = {"positive": "document", "document_id": "id"}
        kinds = (("text", "text", {}), ("pairs", "pair", columns), ("documents", "contextual", columns))
        return [
            Source(name, kind, str(folder / f"{name}.jsonl"), columns=columns, max_bad_share=self.max_bad_share)
            for name, kind, columns in kinds
        ]

    def tokenize(
        self,
        folder: pathlib.Path,
        vocabulary: Vocabulary,
        tokens: pathlib.Path,
        lengths: Lengths,
        prompts: Mapping[str, str] = NO_PROMPTS,
    ) -> dict[str, Any]:
        """Writes one token table per kind, TOKENS/KIND, and returns the number of examples by kind."""
        manifests = [
            tokenize_source(source.with_prompts(prompts), vocabulary, tokens / source.table_folder, lengths)
            for source in self.training_sources(folder)
        ]
        return {manifest["stage"]: manifest["count"] for manifest in manifests}


def vocabulary_texts(corpus: Corpus, folder: pathlib.Path, characters: int = _VOCABULARY_CHARACTERS) -> Iterator[str]:
    """Yields texts and queries to train a vocabulary on, about `characters` from the start of each part of a source."""
    for source in corpus.training_sources(folder):
        if source.kind in _VOCABULARY_FIELDS:
            for part in source.parts().values():
                yield from _up_to(characters, _values(part, _VOCABULARY_FIELDS[part.kind]))


def _values(source: Source, field: str) -> Iterator[str]:
    bad = BadRows(source.name, source.max_bad_share)
    for shard in source.shards():
        for example in source.examples(shard, bad):
            yield example[field]


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return
