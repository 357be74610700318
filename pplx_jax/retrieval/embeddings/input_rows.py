"""Reads rows to embed from JSON lines or Parquet. A row has a text, or a document's chunks."""

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pplx_jax.data.io.json_lines import escaped, is_unicode, parse_object
from pplx_jax.data.io.parquet import open_parquet
from pplx_jax.data.io.row_files import opened, raw_rows

_ABSENT = object()
_METADATA = ("path", "line", "source", "parent", "chunk")


@dataclasses.dataclass(frozen=True)
class InputRow:
    """A row that can be embedded.

    Attributes:
        number: its line in the file, from 1 (Parquet: its row). In several files the lines of all are counted.
        id: its `id` or `_id`, or else its number.
        chunks: one text, or the chunks of a document.
        is_document: whether the chunks are those of a document.
        metadata: other columns that are shown with hits.
        was_cut: whether the chunks were split from one text. Concatenated, they are that text.
    """

    number: int
    id: str
    chunks: list[str]
    is_document: bool
    metadata: dict[str, Any]
    was_cut: bool = False


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be embedded, and the reason."""

    number: int
    reason: str


@dataclasses.dataclass(frozen=True)
class TooLongRow(BadRow):
    """A row over the model's limit."""

    id: str


def read_rows(
    files: Sequence[pathlib.Path], text_field: str, chunks_field: str
) -> Iterator[tuple[str, InputRow | BadRow]]:
    """Yields ("FILE, line N", row) of every row in order. A bad row does not raise an error.

    Args:
        files: JSON lines, plain or gzipped, or Parquet. The numbers of rows continue from file to file.
        text_field, chunks_field: names of the columns, "a.b" for a nested one. A row with `chunks_field` is a document.

    Raises:
        BadInput: a file cannot be read.
    """
    before = line = 0
    for file in files:
        before, line = before + line, 0
        for line, source in raw_rows(file, columns_to_read(file, text_field, chunks_field)):
            yield f"{file}, line {line}", parse_row(before + line, source, text_field, chunks_field)


def columns_to_read(path: pathlib.Path, text_field: str, chunks_field: str) -> Collection[str] | None:
    """Returns the columns of a Parquet file to read; None for all, so that a message can name them."""
    if path.suffix != ".parquet":
        return None
    with opened(path) as file:
        names = open_parquet(file, str(path)).schema_arrow.names
    fields = {field if field in names else field.partition(".")[0] for field in (text_field, chunks_field)}
    return {text_field, chunks_field, "id", "_id", *_METADATA} if fields & {*names} else None


def parse_row(number: int, source: bytes | dict[str, Any], text_field: str, chunks_field: str) -> InputRow | BadRow:
    """Returns a row of `raw_rows` as what can be embedded, or the reason why it cannot."""
    try:
        return _check(number, parse_object(source) if isinstance(source, bytes) else source, text_field, chunks_field)
    except ValueError as error:
        return BadRow(number, escaped(str(error)))
    except RecursionError:
        return BadRow(number, "nested too deeply")


def _check(number: int, row: dict[str, Any], text_field: str, chunks_field: str) -> InputRow:
    is_document = (found := _field(row, chunks_field)) is not _ABSENT
    if is_document:
        chunks = found
        if not isinstance(chunks, list) or not chunks:
            raise ValueError(f'"{chunks_field}" is not a list of at least one text')
    elif (text := _field(row, text_field)) is not _ABSENT:
        chunks = [text]
    else:
        raise ValueError(f'neither "{text_field}" nor "{chunks_field}", only {", ".join(row) or "nothing"}')
    for place, chunk in enumerate(chunks):
        name = f'"{chunks_field}"[{place}]' if is_document else f'"{text_field}"'
        if not isinstance(chunk, str | bytes):
            raise ValueError(f"{name} is {type(chunk).__name__}, not a string")
        _require_unicode(name, chunk)
    identity = next((row[name] for name in ("id", "_id") if row.get(name) is not None), number)
    _require_unicode('"id"', identity if isinstance(identity, bytes) else str(identity))
    metadata = {name: _shown(row[name]) for name in _METADATA if name in row}
    return InputRow(number, str(identity), chunks, is_document, metadata)


def _field(row: dict[str, Any], name: str) -> Any:
    """Returns the value of a column, or of a nested one ("a.b"); `_ABSENT` if the row does not have it."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    return _field(row[outer], inner) if inner and isinstance(row.get(outer), dict) else _ABSENT


def _require_unicode(name: str, text: str | bytes) -> None:
    if isinstance(text, bytes):
        raise ValueError(f"{name} is not UTF-8")
    if not is_unicode(text):
        raise ValueError(f"{name} contains half of a surrogate pair")


def _shown(value: Any) -> Any:
    """Returns the value for JSON. Types without a JSON form, such as times, become strings."""
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {escaped(name): _shown(item) for name, item in value.items()}
        case list():
            return [_shown(item) for item in value]
        case bytes():
            return value.decode(errors="backslashreplace")
        case _:
            return escaped(str(value))
