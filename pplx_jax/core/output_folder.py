"""The folder that a command writes: what it may take the place of, and how it does."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid


def require_free(folder: pathlib.Path, what: str, is_former: Callable[[pathlib.Path], bool]) -> None:
    """Refuses a place that is taken; nothing is there, an empty folder, or a former `what`.

    Args:
      folder: to be written.
      what: it will be, in words.
      is_former: whether a folder holds one already.

    Raises:
      BadInput: something else is there, or a file where a folder above it should be.
    """
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not standing.is_dir() or (standing == folder and any(folder.iterdir()) and not is_former(folder)):
        raise BadInput(f"{standing} is in the way and no {what}; remove it or give another folder")


def describes(path: pathlib.Path, *keys: str) -> bool:
    """Whether a file is a JSON object with these keys: others too have an index.json and a manifest.json."""
    content = read_json_if_valid(path)
    return content is not None and content.keys() >= set(keys)


@contextlib.contextmanager
def replaced_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty sibling to fill, which takes the name when the block ends well.

    A folder that has the name until then is moved aside before it is deleted: a kill leaves no half of it. A link
    stays one, to the new folder.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # a kill's
    temporary.mkdir()
    try:
        yield temporary
        take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def take_place(finished: pathlib.Path, folder: pathlib.Path) -> None:
    """Gives a finished folder its name; a former folder of that name is gone only between two renames."""
    former = folder.with_name(f".{folder.name}.former")
    shutil.rmtree(former, ignore_errors=True)  # a kill's
    if folder.exists():
        os.replace(folder, former)
    os.replace(finished, folder)
    shutil.rmtree(former, ignore_errors=True)
