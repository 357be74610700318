"""A declared source of text: which files, which columns, and what an example of each kind is made of.

| kind | columns | stage |
|---|---|---|
| text | `text` | diffusion |
| pair | `query`, `positive` | pair |
| triplet | `query`, `positive`, `negatives` (a list) | triplet |
| contextual | `chunks` (a list), `document_id`, `queries` (a list of {text, chunk}) | contextual |

In place of `queries` a contextual row may have a `query` and its `positive`: the chunk, or its place from 0.
Any of them may have `language` and `source` too. A pair or text source also reads rows of the contextual kind: a pair
for every query, a text for every chunk.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import paths
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.io.json_lines import is_unicode
from pplx_jax.data.sources.readers import Format, Row, Unreadable, list_shards, read_rows
from pplx_jax.data.tokens.kinds import KINDS

Kind = Literal["text", "pair", "triplet", "contextual"]
Example = dict[str, Any]


class BadRow(ValueError):
    """Why a row cannot be used."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a recipe. Adding one is a gin block that binds these fields.

    Attributes:
        name: unique; its folder of token files, and the `source` of rows that name none.
        kind: what its rows are.
        path: a file, a pattern of files, a TFDS folder or name, or a BEIR folder; a URL for a bucket. `{language}` in
            it stands for each of `languages`.
        root: what a relative path starts from.
        format: "auto" goes by the names of the files.
        split: of TFDS and BEIR.
        columns: field of the kind -> the column that holds it, where that has another name; `a.b` is the field b of
            the column a.
        language: of rows that name none.
        one_language: every row is of `language`, whatever it names.
        languages: language -> sampling weight: one part a language, each with files of its own, all of `one_language`.
        negatives: of a triplet; a row with more gives its first, one with fewer is bad.
        max_characters: a longer text is bad: a dump gone wrong.
        max_bad_share: of the rows; more bad ones end the work.
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

    def __post_init__(self):
        if not self.name or set(self.name) & set("/ \\"):
            raise BadInput(f"Source.name {self.name!r}: give a name without slashes and spaces; it names a folder")
        if self.kind not in KINDS:
            raise BadInput(f"Source.kind {self.kind!r}: one of {', '.join(KINDS)}")
        if not 0 <= self.max_bad_share < 1:
            raise BadInput(f"Source.max_bad_share={self.max_bad_share}: a share from 0 to below 1")
        if bool(self.languages) != ("{language}" in self.path):
            raise BadInput(
                f"Source.path {self.path!r} of {self.name}: `languages` are set where the path says {{language}}"
            )

    @property
    def table_folder(self) -> str:
        """The folder below `data/tokens` that holds the tables of its kind."""
        return KINDS[self.kind].folder

    def parts(self) -> "dict[str, Source]":
        """Table name -> source of one language; the source itself under its own name where it has no `languages`."""
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

    def location(self) -> str:
        return paths.join(self.root, self.path)

    def shards(self) -> list[str]:
        """What can be read apart from one another.

        Raises:
            BadInput: there are no files.
        """
        return list_shards(self.location(), self.format, self.split)

    def rows(self, shard: str) -> Iterator[tuple[str, Row | Unreadable]]:
        """Rows as they are stored, each with its place."""
        return read_rows(self.location(), shard, self.format, self.split)

    def examples(
        self, shard: str, bad: BadRows, *, max_chunks: int = 0, drop: Callable[[str], bool] | None = None
    ) -> Iterator[Example]:
        """Checked examples of one shard, in order.

        Args:
            shard: one of `shards()`.
            bad: counts rows, and stops at too many bad ones.
            max_chunks: a contextual document of more becomes several; 0 for no limit.
            drop: texts for which it is true make their row be left out, counted as "overlaps with evaluation texts".

        Yields:
            text {text}; pair {query, positive}; triplet also {negatives}; contextual
            {chunks, queries: [(text, chunk)]}; each with `language` and `source`.

        Raises:
            BadInput: a shard cannot be opened; too many rows are bad.
        """
        for _, _, example in self.examples_with_rows(shard, bad, max_chunks=max_chunks, drop=drop):
            yield example

    def examples_with_rows(
        self, shard: str, bad: BadRows, *, max_chunks: int = 0, drop: Callable[[str], bool] | None = None
    ) -> Iterator[tuple[str, Row, Example]]:
        """(place, row as it is stored, example) for each of `examples`."""
        make: Callable[[Row], list[Example]] = getattr(self, f"_{self.kind}")
        for place, row in self.rows(shard):
            try:
                if isinstance(row, Unreadable):
                    raise BadRow(row.reason)
                made = make(row)
                labels = self._labels(row)
            except BadRow as error:
                bad.bad(place, str(error))
                continue
            bad.good()
            if drop is not None and any(drop(text) for example in made for text in texts_of(example)):
                bad.dropped += 1
                continue
            for example in made:
                example |= labels
            for example in _parted(made, max_chunks) if self.kind == "contextual" and max_chunks else made:
                yield place, row, example

    def _text(self, row: Row) -> list[Example]:
        if "chunks" in row and self._column("text") not in row:
            return [{"text": chunk} for chunk in self._texts(row, "chunks")]
        return [{"text": self._one_text(row, "text")}]

    def _pair(self, row: Row) -> list[Example]:
        if "chunks" in row and self._column("query") not in row:
            chunks = self._texts(row, "chunks")
            return [{"query": query, "positive": chunks[chunk]} for query, chunk in self._queries(row, chunks)]
        return [{name: self._one_text(row, name) for name in ("query", "positive")}]

    def _triplet(self, row: Row) -> list[Example]:
        negatives = self._texts(row, "negatives")
        if len(negatives) < self.negatives:
            raise BadRow(f"too few negatives ({len(negatives)}, the source wants {self.negatives})")
        return [example | {"negatives": negatives[: self.negatives]} for example in self._pair(row)]

    def _contextual(self, row: Row) -> list[Example]:
        chunks = self._texts(row, "chunks")
        return [{"chunks": chunks, "queries": self._queries(row, chunks)}]

    def _queries(self, row: Row, chunks: list[str]) -> list[tuple[str, int]]:
        column = self._column("queries")
        if column in row:
            found = row[column]
            if not isinstance(found, list) or not all(isinstance(query, dict) for query in found):
                raise BadRow(f"no {column} of type list of objects")
            asked = [(self._text_value(query.get("text"), f"{column}.text"), query.get("chunk")) for query in found]
        else:
            positive = self._value(row, "positive")
            if isinstance(positive, bytes | str):
                text = self._text_value(positive, self._column("positive"))
                if text not in chunks:
                    raise BadRow("the positive is none of the chunks")
                positive = chunks.index(text)
            asked = [(self._one_text(row, "query"), positive)]
        for _, chunk in asked:
            if isinstance(chunk, bool) or not isinstance(chunk, int):
                raise BadRow(f"no chunk of type int (of a query, got {type(chunk).__name__})")
            if not 0 <= chunk < len(chunks):
                name = self._value(row, "document_id")
                raise BadRow(f"no such chunk (document {name} has {len(chunks)} chunks, a query wants chunk {chunk})")
        return asked

    def _column(self, field: str) -> str:
        return self.columns.get(field, field)

    def _value(self, row: Row, field: str) -> Any:
        column = self._column(field)
        if column in row:
            return row[column]
        value: Any = row
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _labels(self, row: Row) -> dict[str, str]:
        named = "" if self.one_language else self._label(row, "language")
        return {"language": named or self.language, "source": self._label(row, "source") or self.name}

    def _label(self, row: Row, field: str) -> str:
        value = self._value(row, field)
        label = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
        if not is_unicode(label):
            raise BadRow(f"{self._column(field)} is not UTF-8")
        return label

    def _one_text(self, row: Row, field: str) -> str:
        return self._text_value(self._value(row, field), self._column(field))

    def _texts(self, row: Row, field: str) -> list[str]:
        values = self._value(row, field)
        values = [values] if isinstance(values, bytes | str) else values  # TFRecord cannot tell a list of one
        if not isinstance(values, list):
            raise BadRow(f"no {self._column(field)} of type list")
        if not values:
            raise BadRow(f"empty {self._column(field)}")
        return [self._text_value(value, self._column(field)) for value in values]

    def _text_value(self, value: Any, column: str) -> str:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise BadRow(f"{column} is not UTF-8") from None
        if not isinstance(value, str):
            raise BadRow(f"no {column} of type str")
        if len(value) > self.max_characters:
            raise BadRow(f"{column} is over-long ({len(value)} characters, at most {self.max_characters})")
        if not value.strip():
            raise BadRow(f"empty {column}")
        if not is_unicode(value):
            raise BadRow(f"{column} is not UTF-8")
        return value


def weighted_parts(sources: Iterable[Source]) -> list[tuple[Source, float]]:
    """Every part of the sources, and its weight among those of its source."""
    return [(part, source.languages.get(part.language, 1.0)) for source in sources for part in source.parts().values()]


def texts_of(example: Example) -> Iterator[str]:
    """Every text of an example."""
    for name in ("text", "query", "positive"):
        if name in example:
            yield example[name]
    yield from example.get("negatives", ())
    yield from example.get("chunks", ())
    yield from (text for text, _ in example.get("queries", ()))


def _parted(documents: list[Example], max_chunks: int) -> Iterator[Example]:
    """Documents of more than `max_chunks` chunks as several of nearly equal size, those with queries only."""
    for document in documents:
        chunks = document["chunks"]
        parts = -(-len(chunks) // max_chunks)
        bounds = [part * len(chunks) // parts for part in range(parts)] + [len(chunks)]
        for start, stop in itertools.pairwise(bounds):
            own = [(text, chunk - start) for text, chunk in document["queries"] if start <= chunk < stop]
            if own:
                yield document | {"chunks": chunks[start:stop], "queries": own}
