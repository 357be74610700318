"""Paths as a user gives them: which are URLs, and which of those can be used."""

import os
import pathlib
import re
import urllib.parse

from pplx_jax.core.errors import BadInput

# `pathlib` drops one of the two slashes after the scheme. A scheme has at least two letters, because "C:/" is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# URLs that fsspec opens but that name nothing outside this process or this machine.
_PRIVATE = ("memory", "data")
_READ_ONLY = ("http", "https", "github", "git", "zip", "tar")


def scheme(path: str | os.PathLike[str]) -> str | None:
    """Returns the scheme of a URL ("gs"), or None for a path."""
    found = _URL.match(os.fspath(path))
    return found[1].lower() if found else None


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path on this machine: `path`, or the path in a URL file:///PATH.

    Raises:
        BadInput: it is another URL.
    """
    text = os.fspath(path)
    match scheme(text):
        case None:
            return pathlib.Path(text)
        case "file":
            parts = urllib.parse.urlsplit(text)
            if parts.netloc not in ("", "localhost"):
                raise BadInput(f"{text} names another machine, {parts.netloc}; write file:///PATH, or PATH alone")
            return pathlib.Path(urllib.parse.unquote(parts.path))
    raise BadInput(f"{text} is a URL, and this takes only a path; give a path, of a mounted bucket for example")


def path_or_url(path: str, output: bool = False) -> str:
    """Returns a local path as `local_path` does, or a URL of storage that other machines can reach.

    Args:
        path: a path or a URL.
        output: whether it is written.

    Raises:
        BadInput: nothing can be read from, or written to, a URL of this scheme.
    """
    found = scheme(path)
    if found in (None, "file"):
        return str(local_path(path))
    if found in _PRIVATE or (output and found in _READ_ONLY) or not _fsspec_knows(found):
        raise BadInput(f"{path}: a URL of {found} cannot be {'written' if output else 'read'}; give a path or gs://...")
    return path


def _fsspec_knows(name: str) -> bool:
    try:
        import fsspec
    except ImportError:
        return True  # what opens the URL names the missing package
    return name in fsspec.available_protocols()
