"""The files that an input names: a file, a folder or a pattern, on this machine or in a bucket, always in one order.

The order is that of the paths as strings, so "part-10" comes before "part-2". It does not depend on the file system.
"""

import glob
import os
import pathlib
from collections.abc import Sequence

from pplx_jax.core.buckets import filesystem, local_copies
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path, is_bucket

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def matching_paths(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the files and folders that match a pattern, in order; a path without *, ? and [ unchanged.

    Args:
        path: as the user gave it. "**" matches any number of folders. A path that exists is no pattern.

    Raises:
        BadInput: nothing matches, or it is a URL of another kind than gs://.
    """
    path = as_path(path)
    if not glob.has_magic(str(path)) or path.exists():
        return [path]
    if is_bucket(path):
        names = filesystem().glob(str(path).removeprefix("gs://"))
        found = [f"gs://{name}" for name in names if "/." not in name or "/." in str(path)]  # as on a disk
    else:
        found = glob.glob(str(path), recursive=True)
    if not found:
        raise BadInput(f"{path}: no file or folder matches this pattern; check it, and put it in quotes")
    return [as_path(name) for name in sorted(name.rstrip("/") for name in found)]


def input_files(path: str | os.PathLike[str], endings: Sequence[str] = ENDINGS) -> list[pathlib.Path]:
    """Returns the files of an input, on this machine, in order. Those of a bucket are downloaded.

    Args:
        path: a file, a folder or a pattern. A pattern names all files that match it. A folder names the files in it and
            in its folders that have one of the `endings`, except names that begin with "." or "_".

    Raises:
        BadInput: there is no such file, or the folder has none of these endings.
    """
    found: list[pathlib.Path] = []
    for match in matching_paths(path):
        if not match.is_dir():
            found.append(match)
            continue
        inner = _files_below(match, tuple(endings))
        if not inner and not glob.has_magic(str(path)):
            raise BadInput(
                f"{match}: no file in this folder ends in {', '.join(endings)}; give a file or another folder"
            )
        found += inner
    if not found:
        raise BadInput(
            f"{path}: no file matches this pattern, and no folder that does has files in {', '.join(endings)}"
        )
    return local_copies(sorted(found, key=str))


def _files_below(folder: pathlib.Path, endings: tuple[str, ...]) -> list[pathlib.Path]:
    if is_bucket(folder):
        root = str(folder).removeprefix("gs://")
        names = [name.removeprefix(f"{root}/") for name in filesystem().find(root)]
    else:
        walked = os.walk(folder, followlinks=True)
        names = [os.path.relpath(os.path.join(place, name), folder) for place, _, files in walked for name in files]
    shown = [name for name in names if name.endswith(endings) and not any(p[0] in "._" for p in name.split("/") if p)]
    return [folder / name for name in shown]
