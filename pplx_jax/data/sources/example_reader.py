"""Makes checked training examples out of rows."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pplx_jax.data.io.json_lines import is_unicode
from pplx_jax.data.sources.file_formats import Row

Example = dict[str, Any]

_DOCUMENT = ("chunks", "queries", "query", "positive", "document_id")
_FIELDS = {
    "text": ("text", "chunks"),
    "pair": _DOCUMENT,
    "triplet": (*_DOCUMENT, "negatives"),
    "contextual": _DOCUMENT,
}
TEACHER = ("scores", "margins")  # fields of a triplet that are read only if `columns` names one of them
_LARGEST = 3.4e38  # scores are stored in float32


class BadRow(ValueError):
    """Why a row cannot be used."""


@dataclasses.dataclass(frozen=True)
class ExampleReader:
    """Makes examples of one kind. The fields are those of `Source`."""

    kind: str
    columns: Mapping[str, str]
    name: str
    language: str
    one_language: bool
    negatives: int
    max_characters: int

    @property
    def needed(self) -> list[str]:
        """The columns that `read` looks at."""
        fields = (*_FIELDS[self.kind], *filter(None, [self.teacher]), "language", "source")
        return [self._column(field) for field in fields]

    @property
    def teacher(self) -> str | None:
        """The field of `TEACHER` that holds teacher scores, if there are any."""
        return next((field for field in TEACHER if field in self.columns), None)

    def read(self, row: Row) -> list[Example]:
        """Returns the examples of a row, as `Source.examples` describes them.

        Raises:
            BadRow: a column is missing, empty, too long, or of another type.
        """
        make = {"text": self._text, "pair": self._pair, "triplet": self._triplet, "contextual": self._contextual}
        examples, labels = make[self.kind](row), self._labels(row)
        return [example | labels for example in examples]

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
        pairs = self._pair(row)
        more: Example = {"negatives": negatives[: self.negatives]}
        if self.teacher:
            if len(pairs) > 1:
                raise BadRow(f"{self._column(self.teacher)} for several queries (of {len(pairs)}: give each a row)")
            more["scores"] = self._scores(row, self.teacher, len(negatives))[: 1 + self.negatives]
        return [example | more for example in pairs]

    def _scores(self, row: Row, field: str, negatives: int) -> list[float]:
        """Returns the teacher's scores of the positive and of each negative of a row."""
        column, found = self._column(field), self._value(row, field)
        values = found if isinstance(found, list) else [found]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise BadRow(f"no {column} of type list of numbers")
        if not all(abs(value) <= _LARGEST for value in values):
            raise BadRow(f"{column} is not finite (got {next(v for v in values if not abs(v) <= _LARGEST)})")
        wanted = negatives if field == "margins" else 1 + negatives
        if len(values) != wanted:
            what = "one for each negative" if field == "margins" else "that of the positive, then of each negative"
            raise BadRow(f"wrong number of {column} (got {len(values)} for {negatives} negatives: give {what})")
        return [0.0, *(-float(margin) for margin in values)] if field == "margins" else [*map(float, values)]

    def _contextual(self, row: Row) -> list[Example]:
        chunks = self._texts(row, "chunks")
        return [{"chunks": chunks, "queries": self._queries(row, chunks)}]

    def _queries(self, row: Row, chunks: list[str]) -> list[tuple[str, int]]:
        column = self._column("queries")
        if column in row:
            found = row[column]
            if not isinstance(found, list) or not all(isinstance(query, dict) for query in found):
                raise BadRow(f"no {column} of type list of objects")
            queries = [(self._text_value(query.get("text"), f"{column}.text"), query.get("chunk")) for query in found]
        else:
            positive = self._value(row, "positive")
            if isinstance(positive, bytes | str):
                text = self._text_value(positive, self._column("positive"))
                if text not in chunks:
                    raise BadRow("the positive is not one of the chunks")
                positive = chunks.index(text)
            queries = [(self._one_text(row, "query"), positive)]
        for _, chunk in queries:
            if isinstance(chunk, bool) or not isinstance(chunk, int):
                raise BadRow(f"no chunk of type int (of a query, got {type(chunk).__name__})")
            if not 0 <= chunk < len(chunks):
                name = self._value(row, "document_id")
                raise BadRow(f"no such chunk (document {name} has {len(chunks)} chunks, a query wants chunk {chunk})")
        return queries

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
        language = "" if self.one_language else self._label(row, "language")
        return {"language": language or self.language, "source": self._label(row, "source") or self.name}

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
        values = [values] if isinstance(values, bytes | str) else values  # TFRecord has no lists of one value
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


def texts_of(example: Example) -> Iterator[str]:
    """Yields every text of an example."""
    for name in ("text", "query", "positive"):
        if name in example:
            yield example[name]
    yield from example.get("negatives", ())
    yield from example.get("chunks", ())
    yield from (text for text, _ in example.get("queries", ()))


def split_documents(documents: Iterable[Example], max_chunks: int) -> list[Example]:
    """Splits contextual documents of more than `max_chunks` chunks into parts of nearly equal size.

    Parts without a query are left out.
    """
    parts = []
    for document in documents:
        chunks = document["chunks"]
        count = -(-len(chunks) // max_chunks)
        bounds = [part * len(chunks) // count for part in range(count)] + [len(chunks)]
        for start, stop in itertools.pairwise(bounds):
            queries = [(text, chunk - start) for text, chunk in document["queries"] if start <= chunk < stop]
            if queries:
                parts.append(document | {"chunks": chunks[start:stop], "queries": queries})
    return parts
