"""Revisions of data: hashes of files, which change when a task has to be scored again."""

import functools
import hashlib
import pathlib
from collections.abc import Iterable


def revision_of_folder(folder: pathlib.Path) -> str:
    """Returns 16 hex digits of the names and contents of all files below a folder, without hidden ones.

    Files are not read again in this process while their sizes and times are unchanged.
    """
    found = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {path: name for path, name in found.items() if not any(part.startswith(".") for part in name.parts)}
    stats = [path.stat() for path in shown]
    return _revision_of(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(shown, stats, strict=True)),
                        tuple(map(str, shown.values())))  # fmt: skip


@functools.lru_cache(maxsize=64)
def _revision_of(files: tuple[tuple[pathlib.Path, int, int], ...], names: tuple[str, ...]) -> str:
    contents = revision_of_files(path for path, _, _ in files)
    return hashlib.sha256(repr((names, contents)).encode()).hexdigest()[:16]


def revision_of_files(paths: Iterable[pathlib.Path]) -> str:
    """Returns 16 hex digits that change with the content of the files: a revision for a `Task`."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
