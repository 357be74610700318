"""Files on local disks and in buckets: expanding patterns, reading, writing.

A path that contains "://" is opened with fsspec (gs:// needs gcsfs, s3:// needs s3fs). Any other path is local.
"""

import contextlib
import glob
import gzip
import hashlib
import os
import pathlib
import shutil
from typing import BinaryIO, cast

from pplx_jax.core.errors import BadInput

_PATTERN = "*?["
_SAMPLE = 1 << 16


def is_url(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def join(root: str, path: str) -> str:
    """Returns `path` below `root`; an absolute path or a URL is returned unchanged."""
    if not root or is_url(path) or os.path.isabs(path):
        return path
    return f"{root.rstrip('/')}/{path}"


def expand(pattern: str) -> list[str]:
    """Returns the files that a path or a pattern names, sorted.

    Raises:
        BadInput: there are none, they cannot be listed, or the URL needs a package that is not installed.
    """
    if is_url(pattern):
        filesystem, path = _filesystem(pattern)
        try:
            if any(sign in path for sign in _PATTERN):
                found = filesystem.glob(path)
            else:
                found = [path] if filesystem.exists(path) else []
        except OSError as error:  # such as a repository that does not exist or is private
            raise BadInput(f"{pattern}: cannot be listed ({error}); check the path of the source") from None
        files = [filesystem.unstrip_protocol(name) for name in found]
    elif any(sign in pattern for sign in _PATTERN):
        files = glob.glob(pattern, recursive=True)
    else:
        files = [pattern] if pathlib.Path(pattern).exists() else []
    if not files:
        raise BadInput(f"{pattern}: no such file; check the path of the source")
    return sorted(str(file) for file in files)


def open_bytes(path: str) -> BinaryIO:
    """Opens a file for reading. A name that ends in .gz is decompressed.

    Raises:
        BadInput: it cannot be opened.
    """
    try:
        if is_url(path):
            filesystem, name = _filesystem(path)
            file = filesystem.open(name, "rb")
        else:
            file = open(path, "rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the path of the source") from None
    return cast(BinaryIO, gzip.open(file)) if path.endswith(".gz") else file


def files_below(path: str) -> list[str]:
    """Returns a file itself, or all files below a folder, sorted."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        found = filesystem.find(name) if filesystem.isdir(name) else [name]
        return sorted(filesystem.unstrip_protocol(each) for each in found)
    place = pathlib.Path(path)
    return sorted(str(each) for each in place.rglob("*") if each.is_file()) if place.is_dir() else [path]


def sample_digest(path: str) -> str:
    """Returns 16 hex digits of the size of a file and of its first, middle and last 64 KiB, as they are stored."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        if is_url(path):
            filesystem, name = _filesystem(path)
            file = stack.enter_context(filesystem.open(name, "rb"))
        else:
            file = stack.enter_context(open(path, "rb"))
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for place in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def exists(path: str) -> bool:
    """Returns whether a file or folder exists."""
    if not is_url(path):
        return pathlib.Path(path).exists()
    filesystem, name = _filesystem(path)
    return filesystem.exists(name)


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file, and the folders above it."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        filesystem.pipe_file(name, content)
    else:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_bytes(content)


def remove_folder(path: str) -> None:
    """Deletes a folder with all files in it, if it is there."""
    if not is_url(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    filesystem, name = _filesystem(path)
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


def remove(path: str) -> None:
    """Deletes a file."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        filesystem.rm_file(name)
    else:
        pathlib.Path(path).unlink()


def upload(folder: pathlib.Path, url: str) -> None:
    """Copies the files of a local folder. The manifest is copied last, because it makes the folder a token table."""
    filesystem, target = _filesystem(url)
    for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".json"):
        filesystem.makedirs(target, exist_ok=True)
        filesystem.put_file(str(file), f"{target}/{file.name}")


def _filesystem(url: str):
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise BadInput(f"{url}: needs a package that is not installed ({error}); install it") from None
    except ValueError as error:
        raise BadInput(f"{url}: {error}; give a path or a URL that fsspec knows") from None
