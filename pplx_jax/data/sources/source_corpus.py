"""A corpus of declared sources, and what every corpus is to tokenisation: a list of sources."""

import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import paths
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.corpus_writer import whole_folder
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.seqio_tasks import Drop, tokenize_source, tokenize_sources
from pplx_jax.data.sources.source import Example, Source
from pplx_jax.data.tokens.kinds import KINDS
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.vocabulary import Vocabulary

FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")


@dataclasses.dataclass(frozen=True)
class SourceCorpus:
    """What a recipe of declared sources reads. Their files stay where they are.

    Attributes:
        sources: of every stage; a mixture of a stage names them.
        evaluation: a BEIR folder, or one that holds several; nothing of it is trained on.
        search: a JSON-lines file that a search of the finished run looks through; the first evaluation set where none.
        tokens: a folder that `pplx-jax data cache` wrote from these sources, on a disk of this machine; tokenised in
            the run where none.
        drop_overlap: leave out training rows that overlap with evaluation texts, and count them.
    """

    sources: Sequence[Source]
    evaluation: str
    search: str = ""
    tokens: str = ""
    drop_overlap: bool = False

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if twice := {f"{source.table_folder} {source.name}" for source in self.sources if names.count(source.name) > 1}:
            raise BadInput(f"SourceCorpus.sources: two are called {min(twice)}; a name stands for one source")
        if paths.is_url(self.tokens):
            raise BadInput(f"SourceCorpus.tokens {self.tokens}: a URL; copy the folder to a disk of this machine")

    def build(self, output: pathlib.Path) -> dict[str, Any]:
        """Links the evaluation sets into `output`, and returns how many files each source has.

        Raises:
            BadInput: a source without files or token tables, no evaluation set, tokens that were not kept from it.
        """
        evaluation = pathlib.Path(self.evaluation).absolute()
        sets = evaluation_folders(evaluation)
        if self.tokens:
            require_tokens(self)
        with whole_folder(pathlib.Path(output)) as partial:
            (partial / "evaluation").symlink_to(evaluation)
            searched = self.search or str(_find(sets[0], "corpus.jsonl"))
            with paths.open_bytes(searched) as file, (partial / "search.jsonl").open("wb") as copy:
                shutil.copyfileobj(file, copy)
        parts = itertools.chain.from_iterable(source.parts().items() for source in self.sources)
        return {"shards": {name: len(part.shards()) for name, part in parts} if not self.tokens else {}}


def evaluation_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The BEIR folders at or within a folder.

    Raises:
        BadInput: there is none.
    """
    found = [one for one in (folder, *sorted(folder.glob("*"))) if one.is_dir() and _has_corpus(one)]
    if not found:
        raise BadInput(f"{folder}: no evaluation set; give a BEIR folder ({', '.join(FILES)}) or a folder of them")
    return found


def overlap_with(folder: pathlib.Path) -> Overlap:
    """What the queries and documents of evaluation sets give away."""
    from pplx_jax.data.io.beir import read_beir

    texts = (read_beir(one) for one in evaluation_folders(folder))
    return Overlap(text for one in texts for text in itertools.chain(one.queries, one.documents))


def require_tokens(corpus: SourceCorpus) -> None:
    """Makes sure that `corpus.tokens` can be trained on in place of the corpus' sources.

    Raises:
        BadInput: a stage has no token tables, or nothing of this evaluation set was left out of one where the corpus
            wants that.
    """
    overlap = corpus_overlap(corpus)
    kinds = {source.kind for source in corpus.sources}
    for kind in (kind for kind in KINDS if kind in kinds):
        opened = open_tables(pathlib.Path(corpus.tokens) / KINDS[kind].folder, kind=kind)
        for table in itertools.chain.from_iterable(opened.values()):
            if overlap is not None and table.manifest.get("evaluation") != overlap.fingerprint:
                raise BadInput(
                    f"{table.folder}: texts of {corpus.evaluation} were not left out; "
                    "run data cache with this recipe again, or set SourceCorpus.drop_overlap = False"
                )


def corpus_sources(corpus: Any, folder: pathlib.Path) -> list[Source]:
    """The sources of any corpus: those it declares, or the files that it wrote into `folder`."""
    if isinstance(corpus, SourceCorpus):
        return list(corpus.sources)
    share = getattr(corpus, "max_bad_share", 0.001)
    documents = {"positive": "document", "document_id": "id"}
    kinds = (("text", "text", {}), ("pairs", "pair", documents), ("documents", "contextual", documents))
    return [
        Source(name=name, kind=kind, path=str(folder / f"{name}.jsonl"), columns=columns, max_bad_share=share)
        for name, kind, columns in kinds
    ]


def corpus_overlap(corpus: Any) -> Overlap | None:
    """What gives away the training texts that a corpus wants left out.

    Raises:
        BadInput: there is no evaluation set.
    """
    if not getattr(corpus, "drop_overlap", False):
        return None
    return overlap_with(pathlib.Path(corpus.evaluation))


def corpus_drop(corpus: Any) -> Drop | None:
    """Which training texts a corpus wants left out."""
    overlap = corpus_overlap(corpus)
    return overlap.of if overlap else None


def tokenize_corpus(
    corpus: Any, folder: pathlib.Path, vocabulary: Vocabulary, tokens: pathlib.Path, lengths: Lengths
) -> dict[str, Any]:
    """Writes the token files of every stage: TOKENS/STAGE, or TOKENS/STAGE/SOURCE of declared sources.

    Those that `SourceCorpus.tokens` has are linked, a stage at a time: what a run adds to them stays its own.

    Returns:
        Examples by stage, or by stage and source.
    """
    sources = corpus_sources(corpus, folder)
    if isinstance(corpus, SourceCorpus):
        if corpus.tokens:
            _link_stages({source.table_folder for source in sources}, pathlib.Path(corpus.tokens).absolute(), tokens)
            return {"tokens": corpus.tokens}
        return tokenize_sources(sources, vocabulary, tokens, lengths, drop=corpus_drop(corpus))
    manifests = [tokenize_source(source, vocabulary, tokens / source.table_folder, lengths) for source in sources]
    return {manifest["stage"]: manifest["count"] for manifest in manifests}


def declares_triplets(corpus: Any) -> bool:
    """Whether a corpus brings its own hard negatives, so that none are mined."""
    return isinstance(corpus, SourceCorpus) and any(source.kind == "triplet" for source in corpus.sources)


def vocabulary_texts(corpus: Any, folder: pathlib.Path, characters: int = 100_000_000) -> Iterator[str]:
    """Texts and queries to train a vocabulary on: of each source from its start, up to so many characters."""
    fields = {"text": "text", "pair": "query"}
    for source in corpus_sources(corpus, folder):
        if source.kind in fields:
            for part in source.parts().values():
                yield from _up_to(characters, (one[fields[part.kind]] for one in _examples(part)))


def _link_stages(stages: Iterable[str], cached: pathlib.Path, tokens: pathlib.Path) -> None:
    tokens.mkdir(parents=True, exist_ok=True)
    if tokens.resolve() == cached.resolve():
        return  # where `data cache` writes by itself
    for stage in stages:
        (tokens / stage).unlink(missing_ok=True)
        (tokens / stage).symlink_to(cached / stage, target_is_directory=True)


def _examples(source: Source) -> Iterator[Example]:
    bad = BadRows(source.name, source.max_bad_share)
    for shard in source.shards():
        yield from source.examples(shard, bad)


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _has_corpus(folder: pathlib.Path) -> bool:
    return any((folder / f"corpus.jsonl{ending}").is_file() for ending in ("", ".gz"))


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / name if (folder / name).exists() else folder / f"{name}.gz"
