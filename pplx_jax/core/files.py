"""Atomic writes and JSON: a file is written under a temporary name and renamed when complete, so that readers never
see half of it. In a bucket, an object is complete when its upload ends."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from pplx_jax.core.buckets import filesystem
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import is_bucket


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file to write to, and renames it to `path` if the block ends without an error.

    The temporary file is a sibling of `path`. If `path` is in a bucket, it is on this machine, and uploaded.
    """
    if is_bucket(path):
        with tempfile.TemporaryDirectory(prefix="pplx-jax-") as scratch:
            temporary = pathlib.Path(scratch) / path.name
            yield temporary
            filesystem().put_file(str(temporary), str(path))
        return
    # The name is random because hosts that share a folder can have equal names and process numbers.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Makes a hard link to a file that is only ever replaced, never changed; a copy if links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path, fix: str = "run the command that wrote it again") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      fix: what the user should do if the file cannot be read; it ends the error message.

    Raises:
      BadInput: the file is missing, or it is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {fix}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged: it is not valid JSON ({error}); {fix}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is damaged: it is not a JSON object; {fix}")
    return value


def read_json_if_valid(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
