"""Files in buckets that must be on this machine: a cache of what is read, staging folders of what is written.

An object in a bucket is complete or absent. A folder is not: it is complete when the file that its readers open first
is there (`model.json`, `manifest.json`), which is uploaded last.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path, is_bucket

CACHE = "PPLX_JAX_CACHE"  # environment variable: the folder of `local_copy`
_PROBE_SECONDS = 20.0  # the library itself tries for half a minute
WRITING = "_being_written"  # object in a folder that is not complete


def cache_folder() -> pathlib.Path:
    """Returns the folder of local copies: $PPLX_JAX_CACHE, or pplx_jax in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get(CACHE)
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return pathlib.Path(given) if given else base / "pplx_jax"


def filesystem() -> Any:
    """Returns the fsspec file system of gs://, the one that epath uses too. It retries what a busy server refuses."""
    as_path("gs://bucket")  # sets it up
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def local_copy(path: pathlib.Path, *, nested: bool = True) -> pathlib.Path:
    """Returns a file or folder of a bucket on this machine; a local path is returned unchanged.

    Every version of an object is downloaded once per machine, into `cache_folder()`. The returned folder shows the
    objects as they are now: a later call sees later changes. The copies must not be changed.

    Args:
        path: if nothing is there, it is returned unchanged.
        nested: whether the folders in a folder belong to it.

    Raises:
        BadInput: the folder is not complete.
        OSError: the download fails, or the disk is full.
    """
    if not is_bucket(path):
        return path
    root = _object_name(path)
    found = {name: info for name, info in filesystem().find(root, detail=True).items() if not name.endswith("/")}
    if not nested:
        found = {name: info for name, info in found.items() if "/" not in name[len(root) :].strip("/")}
    if not found:
        return path
    if any(name.endswith(f"/{WRITING}") for name in found):
        raise BadInput(f"{path} is not complete: a command writes it or was interrupted; run that command again")
    return _shown(path, found)


def local_copies(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns files on this machine; those of a bucket are downloaded together. See `local_copy`.

    Raises:
        OSError: a download fails, or the disk is full.
    """
    wanted = {_object_name(path) for path in paths if is_bucket(path)}
    if not wanted:
        return list(paths)
    if len(paths) == 1:
        return [local_copy(paths[0])]
    root = os.path.commonpath([os.path.dirname(name) for name in wanted])
    listed = filesystem().find(root, detail=True)
    copy = _shown(as_path(f"gs://{root}"), {name: info for name, info in listed.items() if name in wanted})
    return [copy / os.path.relpath(_object_name(path), root) for path in paths]


def _shown(path: pathlib.Path, found: dict[str, Any]) -> pathlib.Path:
    """Returns a folder or file of this machine that shows objects at or below `path` as they are now."""
    root = _object_name(path)
    versions = {name: hashlib.sha256(f"{name}#{_version(info)}".encode()).hexdigest() for name, info in found.items()}
    shown = hashlib.sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]
    name = path.name or root
    copy = cache_folder() / path.parent.relative_to(path.anchor) / f"@{shown}" / name
    if not copy.exists():
        objects = cache_folder() / "objects"
        _download({name: objects / version for name, version in versions.items()}, found)
        with _temporary_folder() as temporary:
            for each, version in versions.items():
                inner = os.path.relpath(each, root)
                target = temporary / name if inner == "." else temporary / name / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(objects / version, target)
            copy.parent.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another process has made it
                os.replace(temporary, copy.parent)
    return copy


@contextlib.contextmanager
def staged(path: pathlib.Path, last: str = "") -> Iterator[pathlib.Path]:
    """Yields a folder of this machine to write: `path` itself, or one that replaces `path` in its bucket at the end.

    Args:
        path: the folder.
        last: as in `replace`.
    """
    if not is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pplx-jax-") as scratch:
        folder = pathlib.Path(scratch) / path.name
        yield folder
        replace(folder, path, last)


def replace(folder: pathlib.Path, path: pathlib.Path, last: str) -> None:
    """Replaces a folder in a bucket by a folder of this machine. Links are followed.

    Args:
        folder: the finished folder.
        path: the folder in the bucket.
        last: the name of the files that make a folder complete. They are deleted first and uploaded last.
    """
    store, root = filesystem(), _object_name(path)
    files = [pathlib.Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
    new = {f"{root}/{file.relative_to(folder).as_posix()}": str(file) for file in sorted(files)}
    former = store.find(root)
    store.pipe_file(f"{root}/{WRITING}", b"")
    marks = [name for name in former if name.rpartition("/")[2] == last]
    if marks:
        store.rm(marks)
    first = {name: file for name, file in new.items() if name.rpartition("/")[2] != last}
    if first:
        store.put(list(first.values()), list(first))
    if stale := [name for name in former if name not in new and name not in marks and not name.endswith(f"/{WRITING}")]:
        store.rm(stale)
    for name in new.keys() - first.keys():
        store.put_file(new[name], name)
    store.rm_file(f"{root}/{WRITING}")


def is_being_written(path: pathlib.Path) -> bool:
    """Returns whether a folder in a bucket is what an interrupted `replace` left."""
    return is_bucket(path) and (path / WRITING).exists()


def remove(path: pathlib.Path) -> None:
    """Deletes a folder of this machine or of a bucket; does nothing if there is none."""
    if not is_bucket(path):
        shutil.rmtree(path, ignore_errors=True)
    elif names := filesystem().find(_object_name(path)):
        filesystem().rm(names)


def require_usable(path: pathlib.Path, output: bool) -> None:
    """Checks in seconds that a bucket can be read, and for an output also written: writes and deletes a small object.

    Raises:
        BadInput: there are no credentials, the bucket does not exist, or it cannot be written.
    """
    if not is_bucket(path):
        return
    root, role = _object_name(path), f"Storage Object {'User' if output else 'Viewer'}"
    try:
        if output:
            probe = f"{root}{'.' if '/' in root else '/'}probe-{uuid.uuid4().hex}"
            filesystem().pipe_file(probe, b"", timeout=_PROBE_SECONDS)
            filesystem().rm_file(probe, timeout=_PROBE_SECONDS)
            role = "Storage Legacy Bucket Reader"  # to read the bucket's description, as Orbax does
            filesystem().call("GET", "b/{}", root.partition("/")[0], timeout=_PROBE_SECONDS)
        else:
            filesystem().find(root, maxdepth=1, timeout=_PROBE_SECONDS)
    except BadInput:
        raise
    except Exception as error:  # the library raises many classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(
            f"{path} cannot be {'written' if output else 'read'} ({reason}); check the name of the bucket, log in with "
            f"`gcloud auth application-default login`, or give this machine's account the role {role} on the bucket"
        ) from None


def _object_name(path: pathlib.Path) -> str:
    """Returns the path in a bucket without its scheme, as fsspec names objects: BUCKET/FOLDER/FILE."""
    return str(path).removeprefix("gs://")


def _version(info: Any) -> str:
    """Returns what changes with the content of an object: its generation, or else its tag."""
    return str(info.get("generation") or info.get("etag") or info.get("md5Hash"))


def _download(wanted: dict[str, pathlib.Path], found: Any) -> None:
    """Downloads objects to the given files; those that exist are complete."""
    missing = {name: file for name, file in wanted.items() if not file.exists()}
    if not missing:
        return
    with _temporary_folder() as temporary:
        files = {name: temporary / file.name for name, file in missing.items()}
        filesystem().get(list(files), [str(file) for file in files.values()])
        for name, file in files.items():
            if file.stat().st_size != found[name]["size"]:
                raise OSError(f"gs://{name}: {file.stat().st_size} bytes of {found[name]['size']} were downloaded")
            missing[name].parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, missing[name])


@contextlib.contextmanager
def _temporary_folder() -> Iterator[pathlib.Path]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="partial-", dir=cache_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
