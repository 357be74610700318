"""Parts of a long computation, each in one file that appears when it is complete, so that machines can share them."""

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
            _write_atomically(settings, lambda path: path.write_text(json.dumps({"fingerprint": fingerprint})))
        elif json.loads(settings.read_text())["fingerprint"] != fingerprint:
            raise BadInput(f"{folder} contains parts of another mining; finish that one or remove the folder")

    def __call__(self, name: str, work: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the arrays of a part, from its file or else from `work`."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays: dict[str, Any] = dict(work())

            def write(temporary: pathlib.Path) -> None:
                with temporary.open("wb") as file:
                    np.savez(file, **arrays)

            _write_atomically(path, write)
            return arrays
        with np.load(path) as arrays:
            return dict(arrays)

    def has(self, name: str) -> bool:
        """Returns whether the part exists."""
        return (self.folder / f"{name}.npz").exists()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # process ids are not unique across machines
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
