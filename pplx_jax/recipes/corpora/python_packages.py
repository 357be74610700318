"""Lists the Python files of the standard library and the installed packages, in a stable order."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import sysconfig
from collections.abc import Collection, Iterator, Sequence

from pplx_jax.core.errors import BadInput

STANDARD_LIBRARY = "python"  # the source of all its modules


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A Python file.

    Attributes:
        root: the folder that contains its top-level package.
        path: the path below the root, with forward slashes.
        source: the top-level package, or STANDARD_LIBRARY.
        size: the size in bytes.
    """

    root: str
    path: str
    source: str
    size: int

    @property
    def module(self) -> str:
        """The dotted name for import."""
        *packages, name = self.path.removesuffix(".py").split("/")
        return ".".join(packages if packages and name == "__init__" else [*packages, name])


def find_files(
    roots: Sequence[str],
    *,
    packages: Collection[str],
    excluded_packages: Collection[str],
    excluded_folders: Collection[str],
    excluded_files: str,
) -> dict[str, list[SourceFile]]:
    """Returns files by source, with roots in order and paths sorted. Arguments are the fields of `PythonCorpus`.

    Raises:
        BadInput: a root is not a folder, or there is no file.
    """
    standard_library = pathlib.Path(sysconfig.get_path("stdlib"))
    if not roots:
        installed = [pathlib.Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
        folders = list(dict.fromkeys([standard_library, *installed]))
    else:
        folders = [pathlib.Path(root) for root in roots]
    found = collections.defaultdict(list)
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"no folder {folder} to read Python packages from; fix the roots of the corpus")
        for path, size in _walk(folder, excluded_folders, re.compile(excluded_files)):
            top = path.split("/")[0].removesuffix(".py")
            source = STANDARD_LIBRARY if folder == standard_library else top
            if top not in excluded_packages and (not packages or source in packages):
                found[source].append(SourceFile(str(folder), path, source, size))
    if not found:
        wanted = f" named {', '.join(packages)}" if packages else ""
        where = ", ".join(map(str, folders))
        raise BadInput(f"no Python packages{wanted} under {where}; give roots that contain packages")
    return dict(found)


def _walk(
    root: pathlib.Path, excluded_folders: Collection[str], excluded_files: re.Pattern[str]
) -> Iterator[tuple[str, int]]:
    """Yields (path below the root, size in bytes)."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in excluded_folders)
        for name in sorted(names):
            if name.endswith(".py") and not excluded_files.fullmatch(name):
                path = pathlib.Path(folder, name)
                with contextlib.suppress(OSError):  # a dangling link
                    yield path.relative_to(root).as_posix(), path.stat().st_size
