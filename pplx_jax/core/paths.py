"""Paths as a user gives them: on this machine, or in a bucket (gs://).

`as_path` gives both the same methods: `pathlib.Path` for a local path, `etils.epath.Path` for a bucket. Two things
differ, and only `core` looks at the difference: the built-in `open` and memory maps need a file of this machine
(`core.buckets.local_copy`), and a folder in a bucket cannot be renamed at once (`core.output_folder`).
"""

import importlib.util
import logging
import os
import pathlib
import re
import urllib.parse
from typing import Any, cast

from pplx_jax.core.errors import BadInput

# `pathlib` drops one of the two slashes after the scheme. A scheme has at least two letters, because "C:/" is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
# URLs that fsspec opens but that name nothing outside this process or this machine.
_PRIVATE = ("memory", "data")
_READ_ONLY = ("http", "https", "github", "git", "zip", "tar")
_BUCKET = ("gs", "gcs")
if importlib.util.find_spec("gcsfs"):
    # Both are read once, at the first use of a path by any library. epath is to use gcsfs and not TensorFlow, and gcsfs
    # is not to ask for the type of a bucket through another API at each call.
    os.environ.setdefault("EPATH_USE_TF", "0")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def scheme(path: str | os.PathLike[str]) -> str | None:
    """Returns the scheme of a URL ("gs"), or None for a path."""
    found = _URL.match(os.fspath(path))
    return found[1].lower() if found else None


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is in a bucket."""
    return scheme(path) in _BUCKET


def as_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path of this machine or of a bucket gs://BUCKET. file:///PATH is PATH.

    Raises:
        BadInput: it is another URL, or the package for buckets is not installed.
    """
    if not is_bucket(path):
        return local_path(path)
    if isinstance(path, pathlib.PurePath) and not isinstance(path, pathlib.Path):
        return cast(pathlib.Path, path)  # epath's
    rest = _URL.sub("", os.fspath(path), count=1).strip("/")
    if not rest:
        raise BadInput(f"{path} names no bucket; write gs://BUCKET/FOLDER")
    return cast(pathlib.Path, _epath()(f"gs://{rest}"))


def require_local(path: str | os.PathLike[str], fix: str) -> pathlib.Path:
    """Returns a path of this machine, for what cannot be in a bucket.

    Args:
        path: as the user gave it.
        fix: what to do instead of giving a URL; it ends the message.

    Raises:
        BadInput: it is a URL.
    """
    if is_bucket(path):
        raise BadInput(f"{os.fspath(path)} is in a bucket, which this cannot take; {fix}")
    return local_path(path)


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
    raise BadInput(f"{text} is a URL, which this cannot take; give a path or gs://BUCKET/PATH")


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


def absolute(path: pathlib.Path) -> pathlib.Path:
    """Returns the absolute path; one in a bucket always is."""
    return path if is_bucket(path) else path.absolute()


def resolved(path: pathlib.Path) -> pathlib.Path:
    """Returns the absolute path without links; one in a bucket has none."""
    return path if is_bucket(path) else path.resolve()


def relative(target: pathlib.Path, start: pathlib.Path) -> str:
    """Returns the path from the folder `start` to `target`: "../model", or a URL or absolute path if only one of the
    two is in a bucket. Links of this machine are resolved first, because ".." after a link is the parent of its
    target. `joined` is its inverse."""
    if is_bucket(target) != is_bucket(start):
        return str(target) if is_bucket(target) else str(target.resolve())
    if is_bucket(target):
        same = target.parts[2] == start.parts[2]
        return os.path.relpath(f"/{str(target)[5:]}", f"/{str(start)[5:]}") if same else str(target)
    return os.path.relpath(os.path.realpath(target), os.path.realpath(start))


def joined(start: pathlib.Path, path: str) -> pathlib.Path:
    """Returns the path that `relative` described, without ".."."""
    if is_bucket(path) or os.path.isabs(path):
        return as_path(path)
    if is_bucket(start):
        return as_path("gs://" + os.path.normpath(f"{str(start)[5:]}/{path}"))
    return (start / path).resolve()


def is_plain_name(name: object) -> bool:
    """Returns whether a name from a manifest names something in the manifest's own folder, without any separator."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def _epath() -> Any:
    """Returns `epath.Path`, set to see at once what other processes write."""
    try:
        import fsspec.config
        import gcsfs  # noqa: F401  (checked here, because epath imports it at the first access)
        from etils import epath
    except ImportError as error:
        raise BadInput(
            f"gs:// needs a package that is not installed ({error}); pip install 'pplx-jax[bucket]'"
        ) from None
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log, with a traceback, what they raise anyway
    for name in _BUCKET:
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return epath.Path


def _fsspec_knows(name: str | None) -> bool:
    try:
        import fsspec
    except ImportError:
        return True  # what opens the URL names the missing package
    return name in fsspec.available_protocols()
