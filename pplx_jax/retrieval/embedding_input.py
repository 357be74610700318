"""Reads rows to embed from JSON lines or Parquet. A row has a text, or a document's chunks."""

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import escaped, is_unicode, numbered_lines, parse_object
from pplx_jax.data.io.parquet import decoded, open_parquet, parquet_rows

_ABSENT = object()
_METADATA = ("path", "line", "source", "parent", "chunk")


@dataclasses.dataclass(frozen=True)
class InputRow:
    """A row that can be embedded.

    Attributes:
        number: its line in the file, from 1 (Parquet: its row).
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


def read_rows(path: pathlib.Path, text_field: str, chunks_field: str) -> Iterator[InputRow | BadRow]:
    """Yields the rows in order. A bad row does not raise an error.

    Args:
        path: .jsonl, .jsonl.gz or .parquet.
        text_field, chunks_field: names of the columns, "a.b" for a nested one. A row with `chunks_field` is a document.

    Raises:
        BadInput: the file cannot be read.
    """
    for row in raw_rows(path, _columns(path, text_field, chunks_field)):
        yield _parse(row, text_field, chunks_field)


def read_shards(
    path: pathlib.Path, text_field: str, chunks_field: str, shard_size: int, wanted: Collection[int]
) -> Iterator[tuple[int, list[InputRow | BadRow]]]:
    """Yields (number, rows) of the wanted shards of `shard_size` rows, in order; see `read_rows`."""
    rows, left = raw_rows(path, _columns(path, text_field, chunks_field)), len(wanted)
    for number in itertools.count():
        if not left or not (batch := list(itertools.islice(rows, shard_size))):
            return
        if number in wanted:
            left -= 1
            yield number, [_parse(row, text_field, chunks_field) for row in batch]


def weigh_shards(path: pathlib.Path, shard_size: int) -> tuple[int, list[int]]:
    """Returns the number of rows, and the weight of each shard: the bytes of its lines, or its rows of Parquet."""
    if path.suffix == ".parquet":
        with _opened(path) as file:
            rows = open_parquet(file, str(path)).metadata.num_rows
        return rows, [min(shard_size, rows - start) for start in range(0, rows, shard_size)]
    rows, weights = 0, []
    for _, line in numbered_lines(path):
        if rows % shard_size == 0:
            weights.append(0)
        weights[-1] += len(line)
        rows += 1
    return rows, weights


def raw_rows(
    path: pathlib.Path, columns: Collection[str] | None = None
) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Yields (number from 1, a line of JSON or a row of Parquet without null values).

    A value of type bytes in a Parquet row is a string that is not UTF-8.

    Args:
        path: the file.
        columns: of Parquet, the columns to read; None for all.

    Raises:
        BadInput: the file cannot be read.
    """
    if path.suffix != ".parquet":
        yield from numbered_lines(path)
        return
    with _opened(path) as file:
        for number, row in enumerate(parquet_rows(file, str(path), columns), start=1):
            yield number, decoded(row)


def _columns(path: pathlib.Path, text_field: str, chunks_field: str) -> Collection[str] | None:
    """Returns the columns of a Parquet file to read; None for all, so that a message can name them."""
    if path.suffix != ".parquet":
        return None
    with _opened(path) as file:
        names = open_parquet(file, str(path)).schema_arrow.names
    fields = {field if field in names else field.partition(".")[0] for field in (text_field, chunks_field)}
    return {text_field, chunks_field, "id", "_id", *_METADATA} if fields & {*names} else None


def _parse(row: tuple[int, bytes | dict[str, Any]], text_field: str, chunks_field: str) -> InputRow | BadRow:
    number, source = row
    try:
        return _check(number, parse_object(source) if isinstance(source, bytes) else source, text_field, chunks_field)
    except ValueError as error:
        return BadRow(number, escaped(str(error)))
    except RecursionError:
        return BadRow(number, "nested too deeply")


def _opened(path: pathlib.Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}; check the path") from None


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
