"""The folder that a command writes: what it may replace, and how it is replaced."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from pplx_jax.core.buckets import is_being_written, replace, staged
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid
from pplx_jax.core.paths import is_bucket


def require_free(folder: pathlib.Path, what: str, is_former: Callable[[pathlib.Path], bool]) -> None:
    """Checks that a folder may be written: it does not exist, is empty, or holds an earlier output of the same kind.

    Args:
      folder: the folder to write.
      what: the kind of output, for the message.
      is_former: whether a folder holds an earlier output.

    Raises:
      BadInput: the folder holds something else, or a parent of it is a file.
    """
    parents = () if is_bucket(folder) else folder.absolute().parents
    existing = next((path for path in (folder, *parents) if path.exists()), None)
    if existing is None or is_being_written(folder):
        return
    if not existing.is_dir() or (existing == folder and any(folder.iterdir()) and not is_former(folder)):
        raise BadInput(f"{existing} is in the way and no {what}; remove it or give another folder")


def describes(path: pathlib.Path, *keys: str) -> bool:
    """Returns whether a file is a JSON object with these keys. Its name is not enough: other programs use it too."""
    content = read_json_if_valid(path)
    return content is not None and content.keys() >= set(keys)


@contextlib.contextmanager
def replaced_folder(folder: pathlib.Path, last: str = "") -> Iterator[pathlib.Path]:
    """Yields an empty folder of this machine to fill, and moves it to `folder` if the block ends without an error.

    An earlier folder of that name is renamed before it is deleted, so that a kill leaves no half of it. A link stays a
    link, to the new folder.

    Args:
        folder: the folder to write.
        last: as in `take_place`.
    """
    if is_bucket(folder):
        with staged(folder, last) as temporary:
            temporary.mkdir()
            yield temporary
        return
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        yield temporary
        take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def scratch_beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty temporary folder of this machine, on the disk of `folder` if that is a disk of this machine."""
    if not is_bucket(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    beside = None if is_bucket(folder) else folder.parent
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-partial-", dir=beside) as scratch:
        yield pathlib.Path(scratch)


def take_place(finished: pathlib.Path, folder: pathlib.Path, last: str = "") -> None:
    """Renames a finished folder; an earlier folder of that name is missing only between two renames.

    Args:
        finished: the folder, on this machine.
        folder: its new place. In a bucket, the files are uploaded.
        last: the name of the file that a reader of such a folder opens first. In a bucket it is uploaded last, so that
            a folder without it is not complete.
    """
    if is_bucket(folder):
        replace(finished, folder, last)
        return
    former = folder.with_name(f".{folder.name}.former")
    shutil.rmtree(former, ignore_errors=True)  # of a process that was killed
    if folder.exists():
        os.replace(folder, former)
    os.replace(finished, folder)
    shutil.rmtree(former, ignore_errors=True)
