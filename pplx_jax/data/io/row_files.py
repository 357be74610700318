"""Reads the rows of JSON lines, plain or gzipped, and of Parquet. What a row must hold, its reader says."""

import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import numbered_lines
from pplx_jax.data.io.parquet import decoded, parquet_rows


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
    with opened(path) as file:
        for number, row in enumerate(parquet_rows(file, str(path), columns), start=1):
            yield number, decoded(row)


def rows_of_files(
    files: Iterable[pathlib.Path],
) -> Iterator[tuple[pathlib.Path, tuple[int, bytes | dict[str, Any]]]]:
    """Yields (file, row) for the rows of several files, see `raw_rows`."""
    for file in files:
        for row in raw_rows(file):
            yield file, row


def opened(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading. Raises BadInput if that fails."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}; check the path") from None
