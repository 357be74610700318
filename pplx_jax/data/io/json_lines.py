"""Reads JSON lines, plain or gzipped. Errors name the file and the line."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from pplx_jax.core.errors import BadInput


def numbered_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line without its newline), except blank lines. A name in .gz is decompressed.

    Raises:
        BadInput: the file cannot be opened, or the archive is damaged.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}, after line {number}: {error}; the archive is damaged; write it again") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}; check the path") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """Parses one JSON object in UTF-8.

    Raises:
        ValueError: the line is not a JSON object. The message completes "FILE, line N: ...".
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object ({type(value).__name__})")
    return value


def is_unicode(text: str) -> bool:
    """Returns whether a text is valid Unicode. JSON can contain half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """Returns the text with halves of surrogate pairs escaped, so that it can be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()
