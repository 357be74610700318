"""Pieces of a long piece of work, each a file that is there whole or not at all, so that machines can share them."""

import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput

_SETTINGS = "settings.json"


class Parts:
    """Named arrays in a folder beside the result; a part that is there is not worked out again."""

    def __init__(self, folder: pathlib.Path, fingerprint: str):
        """Opens the folder, or makes it.

        Raises:
          BadInput: it holds parts of other work.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / _SETTINGS
        if not settings.exists():
            _write_whole(settings, lambda path: path.write_text(json.dumps({"fingerprint": fingerprint})))
        elif json.loads(settings.read_text())["fingerprint"] != fingerprint:
            raise BadInput(f"{folder} holds parts of another mining; finish that one or remove the folder")

    def __call__(self, name: str, work: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a part, from its file or else from `work`."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays: dict[str, Any] = dict(work())

            def write(temporary: pathlib.Path) -> None:
                with temporary.open("wb") as file:
                    np.savez(file, **arrays)

            _write_whole(path, write)
            return arrays
        with np.load(path) as arrays:
            return dict(arrays)

    def has(self, name: str) -> bool:
        """Whether the part is there."""
        return (self.folder / f"{name}.npz").exists()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # machines may share a name and process numbers
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
