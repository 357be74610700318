"""Parts of a long computation, each in one file that appears when it is complete, so that machines can share them."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.buckets import remove
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, write_json

_SETTINGS = "settings.json"


class Parts:
    """Named arrays in a folder. An existing part is not computed again."""

    def __init__(self, folder: pathlib.Path, fingerprint: str):
        """Opens or creates the folder.

        Raises:
          BadInput: it contains parts of another computation.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / _SETTINGS
        if not settings.exists():
            write_json(settings, {"fingerprint": fingerprint})
        elif read_json(settings, fix=f"remove {folder}").get("fingerprint") != fingerprint:
            raise BadInput(f"{folder} contains parts of another mining; finish that one or remove the folder")

    def __call__(self, name: str, work: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the arrays of a part, from its file or else from `work`."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays: dict[str, Any] = dict(work())
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            return arrays
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)

    def has(self, name: str) -> bool:
        """Returns whether the part exists."""
        return (self.folder / f"{name}.npz").exists()

    def remove(self) -> None:
        """Removes the folder."""
        remove(self.folder)
