"""A declared source of training examples: which files it reads, and which columns.

To add a source, bind a `Source` in gin and list it in `SourceCorpus.sources` (see `gin/data/pplx_embed.gin`).

| kind | columns |
|---|---|
| text | `text` |
| pair | `query`, `positive` |
| triplet | `query`, `positive`, `negatives` (a list) |
| contextual | `chunks` (a list), `document_id`, `queries` (a list of {text, chunk}) |

Instead of `queries` a contextual row may have a `query` and its `positive`: the text of the chunk, or its index from 0.
Every row may have `language` and `source`. A triplet may have a teacher's scores: a column that `columns` names for
`scores`, a list of the score of the positive and that of each negative in their order, or for `margins`, a list of the
score of the positive minus that of each negative; a single number is a list of one. Text and pair sources also read
contextual rows: one text per chunk, one pair per query.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import DOCUMENT, QUERY, checked_prompts
from pplx_jax.data.io import storage
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.example_reader import TEACHER, BadRow, Example, ExampleReader, split_documents, texts_of
from pplx_jax.data.sources.file_formats import Format, Row, Unreadable, list_shards, read_rows
from pplx_jax.data.sources.seqio_rows import task_rates
from pplx_jax.data.tokens.kinds import FOLDERS, Kind

_LATER = ("query_prompt", "document_prompt")  # fields that earlier versions did not have


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """One source of a recipe.

    Attributes:
        name: a unique name. It is the folder of the token tables, and the `source` of rows that have none.
        kind: the kind of example, a key of `data.tokens.kinds.FOLDERS`.
        path: a file, a pattern of files, a TFDS folder or name, or a BEIR folder, also as a URL; or the name of a Task
            or Mixture of SeqIO. `{language}` in the path is replaced by each of `languages`.
        root: the folder or URL that a relative path starts from.
        format: the file format; "auto" chooses by the name of each file.
        split: the split of TFDS, BEIR and SeqIO.
        columns: field -> the column that holds it, if it has another name. `a.b` is field b of column a. Teacher
            scores are read only if `scores` or `margins` is here.
        language: the language of rows that have none.
        one_language: whether all rows are in `language`, whatever they say.
        languages: language -> sampling weight. The source then has one part per language, each with its own files.
        negatives: number of negatives of a triplet. A row with fewer is bad; of more, the first ones are used.
        max_characters: a row with a longer text is bad.
        max_bad_share: the largest share of rows that may be bad before reading stops.
        query_prompt: text before every query; None for `run.prompts` of the recipe, "" for none.
        document_prompt: text before every document, in the same way: before positives and negatives, and before the
            first chunk of a contextual document.
    """

    name: str
    kind: Kind
    path: str
    root: str = ""
    format: Format = "auto"
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    language: str = ""
    one_language: bool = False
    languages: dict[str, float] = dataclasses.field(default_factory=dict)
    negatives: int = 7
    max_characters: int = 1_000_000
    max_bad_share: float = 0.0
    query_prompt: str | None = None
    document_prompt: str | None = None

    def __post_init__(self):
        if not self.name or set(self.name) & set("/ \\"):
            raise BadInput(f"Source.name {self.name!r}: give a name without slashes and spaces; it names a folder")
        if self.kind not in FOLDERS:
            raise BadInput(f"Source.kind {self.kind!r}: one of {', '.join(FOLDERS)}")
        if not 0 <= self.max_bad_share < 1:
            raise BadInput(f"Source.max_bad_share={self.max_bad_share}: a share from 0 to below 1")
        if bool(self.languages) != ("{language}" in self.path):
            raise BadInput(
                f"Source.path {self.path!r} of {self.name}: set `languages` where the path says {{language}}, and only "
                "there"
            )
        if teacher := [field for field in TEACHER if field in self.columns]:
            if self.kind != "triplet":
                raise BadInput(
                    f"Source.columns of {self.name} names {teacher[0]}, and its kind is {self.kind}: a teacher's "
                    "scores belong to triplets; declare a triplet source"
                )
            if len(teacher) > 1:
                raise BadInput(f"Source.columns of {self.name} names scores and margins; name one of them")
        if self.kind == "text" and (self.query_prompt or self.document_prompt):
            raise BadInput(f"Source {self.name} of kind text has a prompt; prompts are for queries and documents")

    def __repr__(self) -> str:
        """Names later fields only where they are set: finished phases keep this text and are compared by it."""
        values = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        shown = [f"{name}={value!r}" for name, value, default in values if name not in _LATER or value != default]
        return f"Source({', '.join(shown)})"

    def with_prompts(self, prompts: Mapping[str, str]) -> "Source":
        """Returns the source with the prompts of a recipe where it has none of its own."""
        if self.kind == "text" or not prompts:
            return self
        own = {QUERY: self.query_prompt, DOCUMENT: self.document_prompt}
        found = {f"{name}_prompt": prompts.get(name) if text is None else text for name, text in own.items()}
        return dataclasses.replace(self, **found)

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts of its queries and documents, without empty ones."""
        return checked_prompts({QUERY: self.query_prompt or "", DOCUMENT: self.document_prompt or ""}, self.name)

    def prompted(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yields checked examples with the prompts of the source before their queries and documents."""
        query, document = (self.prompts.get(name, "") for name in (QUERY, DOCUMENT))
        for example in examples:
            prompted = dict(example)
            if "query" in example:
                prompted["query"] = query + example["query"]
            if "positive" in example:
                prompted["positive"] = document + example["positive"]
            if "negatives" in example:
                prompted["negatives"] = [document + text for text in example["negatives"]]
            if "chunks" in example:
                prompted["chunks"] = [document + example["chunks"][0], *example["chunks"][1:]]
                prompted["queries"] = [(query + text, chunk) for text, chunk in example["queries"]]
            yield prompted

    @property
    def has_scores(self) -> bool:
        """Whether its triplets have teacher scores."""
        return any(field in self.columns for field in TEACHER)

    @property
    def table_folder(self) -> str:
        """The folder below `data/tokens` that holds the tables of its kind."""
        return FOLDERS[self.kind]

    def parts(self) -> "dict[str, Source]":
        """Returns table name -> source of one language, or of one task of a Mixture of SeqIO; else {name: self}."""
        if self.format == "seqio" and [*(tasks := task_rates(self.path))] != [self.path]:
            return {
                f"{self.name}.{task}": dataclasses.replace(self, name=f"{self.name}.{task}", path=task)
                for task in tasks
            }
        if not self.languages:
            return {self.name: self}
        return {
            f"{self.name}.{language}": dataclasses.replace(
                self,
                name=f"{self.name}.{language}",
                path=self.path.replace("{language}", language),
                language=language,
                one_language=True,
                languages={},
            )
            for language in self.languages
        }

    def part_weight(self, part: "Source") -> float:
        """Returns the sampling weight of one of `parts` among the others."""
        if self.format == "seqio":
            return task_rates(self.path)[part.path]
        return self.languages.get(part.language, 1.0)

    def location(self) -> str:
        """Returns the path with its root."""
        return storage.join(self.root, self.path)

    def shards(self) -> list[str]:
        """Returns the parts that can be read separately, such as files.

        Raises:
            BadInput: there are no files.
        """
        return list_shards(self.location(), self.format, self.split)

    def digest(self) -> str | None:
        """Returns 16 hex digits of the files: of their names, sizes, and first, middle and last 64 KiB.

        None if there are no files, or if they are of TFDS or SeqIO, which have versions of their own.
        """
        if self.format in ("tfds", "seqio"):
            return None
        try:
            files = [file for shard in self.shards() for file in storage.files_below(shard)]
        except BadInput:
            return None
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.rpartition('/')[2]} {storage.sample_digest(file)}\n".encode())
        return digest.hexdigest()[:16]

    def examples(
        self, shard: str, bad: BadRows, *, max_chunks: int = 0, drop: Callable[[str], bool] | None = None
    ) -> Iterator[Example]:
        """Yields the checked examples of one shard, in order.

        Args:
            shard: one of `shards()`.
            bad: counts the rows, and raises when too many are bad.
            max_chunks: a contextual document with more chunks is split; 0 for no limit.
            drop: whether a text must not be trained on. Its row is left out and counted as dropped.

        Yields:
            text: {text}; pair: {query, positive}; triplet: {query, positive, negatives}, and `scores` of 1 + negatives
            if the source has them; contextual: {chunks, queries: [(text, chunk)]}; each with `language` and `source`.

        Raises:
            BadInput: a shard cannot be opened, or too many rows are bad.
        """
        for _, _, example in self.examples_with_rows(shard, bad, max_chunks=max_chunks, drop=drop):
            yield example

    def examples_with_rows(
        self, shard: str, bad: BadRows, *, max_chunks: int = 0, drop: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[str, Row, Example]]:
        """Yields (place, row as stored, example) for each of `examples`; of Parquet, a row has the needed columns."""
        reader = ExampleReader(
            kind=self.kind,
            columns=self.columns,
            name=self.name,
            language=self.language,
            one_language=self.one_language,
            negatives=self.negatives,
            max_characters=self.max_characters,
        )
        for place, row in read_rows(self.location(), shard, self.format, self.split, reader.needed):
            try:
                if isinstance(row, Unreadable):
                    raise BadRow(row.reason)
                examples = reader.read(row)
            except BadRow as error:
                bad.bad(place, str(error))
                continue
            bad.good()
            if drop is not None and any(drop(text) for example in examples for text in texts_of(example)):
                bad.dropped += 1
                continue
            if self.kind == "contextual" and max_chunks:
                examples = split_documents(examples, max_chunks)
            for example in examples:
                yield place, row, example


def weighted_parts(sources: Iterable[Source]) -> list[tuple[Source, float]]:
    """Returns every part of the sources, with its weight among the parts of its source."""
    return [(part, source.part_weight(part)) for source in sources for part in source.parts().values()]
