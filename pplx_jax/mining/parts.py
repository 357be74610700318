"""Pieces of a long piece of work, each a file that is there whole or not at all, so that machines can share them."""

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, write_json

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
            write_json(settings, {"fingerprint": fingerprint})
        elif read_json(settings, fix=f"remove {folder}").get("fingerprint") != fingerprint:
            raise BadInput(f"{folder} holds parts of another mining; finish that one or remove the folder")

    def __call__(self, name: str, work: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a part, from its file or else from `work`."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays: dict[str, Any] = dict(work())
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            return arrays
        with np.load(path) as arrays:
            return dict(arrays)

    def has(self, name: str) -> bool:
        """Whether the part is there."""
        return (self.folder / f"{name}.npz").exists()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
