"""A corpus of declared sources."""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import link_or_copy
from pplx_jax.core.paths import absolute, as_path, is_bucket
from pplx_jax.data.io import storage
from pplx_jax.data.io.beir import corpus_files, holds, read_beir, set_folders
from pplx_jax.data.io.row_files import rows_of_files
from pplx_jax.data.sources.corpus import NO_PROMPTS, Corpus
from pplx_jax.data.sources.corpus_writer import corpus_folder
from pplx_jax.data.sources.duplicates import Mode, check_mode
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.data.tokens.open_tables import Tables, open_tables, require_lengths


@dataclasses.dataclass(frozen=True)
class SourceCorpus(Corpus):
    """Declared sources, whose files stay where they are, and an evaluation set.

    Attributes:
        sources: sources of every kind. The `Mixture` of a stage names those that it reads.
        evaluation: a BEIR folder, or a folder of several; it may be in a bucket.
        search: a JSON-lines file that a search of the finished run looks through; by default the first evaluation set.
        tokens: a folder that `pplx-jax data cache` wrote from these sources; it may be in a bucket. If empty, the run
            tokenises them.
        drop_overlap: whether to leave out training rows that overlap with evaluation texts. They are counted.
        drop_duplicates: "exact" leaves out examples that repeat an earlier one of any source of their kind, "near" also
            those that nearly do (`data.sources.duplicates`); "" keeps all. The first one, in the order of `sources` and
            of their files and rows, is kept. They are counted.
    """

    sources: Sequence[Source]
    evaluation: str
    search: str = ""
    tokens: str = ""
    drop_overlap: bool = False
    drop_duplicates: Mode = ""

    sources_need_build: ClassVar[bool] = False

    def __post_init__(self):
        check_mode("SourceCorpus.drop_duplicates", self.drop_duplicates)
        names = [source.name for source in self.sources]
        if twice := {f"{source.table_folder} {source.name}" for source in self.sources if names.count(source.name) > 1}:
            raise BadInput(f"SourceCorpus.sources: two are called {min(twice)}; give each source its own name")
        if storage.is_url(self.tokens) and not is_bucket(self.tokens):
            raise BadInput(f"SourceCorpus.tokens {self.tokens}: no bucket gs://; copy the folder to a disk or to one")

    def build(self, output: pathlib.Path) -> dict[str, Any]:
        """Links or copies the evaluation sets into `output`, and returns the number of files of each source.

        Raises:
            BadInput: a source has no files or token tables; there is no evaluation set; or `tokens` contain evaluation
                texts although `drop_overlap` is set, or were made with another `drop_duplicates`.
        """
        evaluation = absolute(self.evaluation_folder(output))
        sets = evaluation_sets(evaluation)
        if self.tokens:
            self._check_tokens()
        with corpus_folder(pathlib.Path(output)) as partial:
            if is_bucket(self.evaluation):  # other machines do not have the cache of this one
                shutil.copytree(evaluation, partial / "evaluation")
            else:
                (partial / "evaluation").symlink_to(evaluation)
            with (partial / "search.jsonl").open("wb") as copy:
                if self.search:
                    with storage.open_bytes(self.search) as file:
                        shutil.copyfileobj(file, copy)
                else:
                    copy.writelines(_json_line(source) for _, (_, source) in rows_of_files(corpus_files(sets[0])))
        parts = itertools.chain.from_iterable(source.parts().items() for source in self.sources)
        return {"shards": {name: len(part.shards()) for name, part in parts} if not self.tokens else {}}

    def training_sources(self, folder):
        return list(self.sources)

    def evaluation_folder(self, folder):
        return local_copy(as_path(self.evaluation))

    def excluded_texts(self):
        return evaluation_overlap(local_copy(as_path(self.evaluation))) if self.drop_overlap else None

    def excluded_duplicates(self):
        return self.drop_duplicates

    def declares_triplets(self):
        return any(source.kind == "triplet" for source in self.sources)

    def file_digests(self):
        """Returns the digests of all sources whose files are there, unless `tokens` are read in their place."""
        parts = {} if self.tokens else {name: one for source in self.sources for name, one in source.parts().items()}
        found = {name: part.digest() for name, part in parts.items()}
        return {f"files of {name}": digest for name, digest in found.items() if digest is not None}

    def tokenize(self, folder, vocabulary, tokens, lengths, prompts=NO_PROMPTS):
        """Writes TOKENS/KIND/SOURCE, or links the kinds that `self.tokens` has into TOKENS; from a bucket, copies them.

        Each kind is a separate link, so that tables which a run adds, such as mined triplets, stay in that run. The
        local cache of a bucket is not linked, because other hosts do not have it.
        """
        if not self.tokens:
            return super().tokenize(folder, vocabulary, tokens, lengths, prompts)
        folders = {source.table_folder for source in self.sources}
        for folder in sorted(folders):
            tables = open_tables(as_path(self.tokens) / folder)
            require_lengths(tables, lengths)
            self._require_prompts(tables, folder, prompts)
        if is_bucket(self.tokens):
            _copy_folders(folders, as_path(self.tokens), tokens)
        else:
            _link_folders(folders, as_path(self.tokens).absolute(), tokens)
        return {"tokens": self.tokens}

    def _require_prompts(self, tables: Tables, folder: str, prompts: Mapping[str, str]) -> None:
        """Raises BadInput if tables were made with other prompts than this recipe has."""
        declared = [source.with_prompts(prompts) for source in self.sources if source.table_folder == folder]
        for name, part in itertools.chain.from_iterable(source.parts().items() for source in declared):
            for table in tables.get(name, ()):
                if (made := table.manifest.get("prompts", {})) != part.prompts:
                    raise BadInput(
                        f"{table.folder} was made with the prompts {made}, this recipe has {part.prompts}; set them "
                        "back, or run data cache with this recipe again"
                    )

    def _check_tokens(self) -> None:
        """Makes sure that `tokens` holds every kind, without the texts that must be left out."""
        overlap = self.excluded_texts()
        kinds = {source.kind for source in self.sources}
        for kind in (kind for kind in FOLDERS if kind in kinds):
            opened = open_tables(as_path(self.tokens) / FOLDERS[kind], kind=kind)
            for table in itertools.chain.from_iterable(opened.values()):
                if overlap is not None and table.manifest.get("evaluation") != overlap.fingerprint:
                    raise BadInput(
                        f"{table.folder}: texts of {self.evaluation} were not left out; "
                        "run data cache with this recipe again, or set SourceCorpus.drop_overlap = False"
                    )
                if (made := table.manifest.get("duplicates", "")) != self.drop_duplicates:
                    raise BadInput(
                        f"{table.folder} was made with drop_duplicates={made!r}, this recipe has "
                        f"{self.drop_duplicates!r}; set it back, or run data cache with this recipe again"
                    )


def _json_line(source: bytes | dict[str, Any]) -> bytes:
    return (source if isinstance(source, bytes) else json.dumps(source, ensure_ascii=False).encode()) + b"\n"


def evaluation_sets(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns a BEIR folder itself, or the BEIR folders in it.

    Raises:
        BadInput: there is none.
    """
    found = [one for one in set_folders(folder) if holds(one, "corpus")] if folder.is_dir() else []
    if not found:
        raise BadInput(
            f"{folder}: no evaluation set; give a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv) or a folder of "
            "them"
        )
    return found


def evaluation_overlap(folder: pathlib.Path) -> Overlap:
    """Returns the overlap test for the queries and documents of the evaluation sets in a folder.

    Raises:
        BadInput: there is none, or a file of one is damaged.
    """
    sets = (read_beir(one) for one in evaluation_sets(folder))
    return Overlap(text for one in sets for text in itertools.chain(one.queries, one.documents))


def _copy_folders(names: Iterable[str], bucket: pathlib.Path, tokens: pathlib.Path) -> None:
    tokens.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.rmtree(tokens / name, ignore_errors=True)  # of a run that was killed
        shutil.copytree(local_copy(bucket / name), tokens / name, copy_function=link_or_copy)


def _link_folders(names: Iterable[str], cached: pathlib.Path, tokens: pathlib.Path) -> None:
    tokens.mkdir(parents=True, exist_ok=True)
    if tokens.resolve() == cached.resolve():
        return  # the default output of `data cache`
    for name in names:
        (tokens / name).unlink(missing_ok=True)
        (tokens / name).symlink_to(cached / name, target_is_directory=True)
