"""What an interrupted pass over a corpus has counted, so that the same command does not read it all again."""

import hashlib
import pathlib
import time
import zipfile
from collections.abc import Callable

import numpy as np

from pplx_jax.core.files import atomic_path

SAVE_SECONDS = 60.0


class PoolProgress:
    """The counts of `PoolRanks` after some blocks, in one file. They count only for the same pass.

    Args:
        folder: of the file; None to keep nothing.
        facts: everything that the counts depend on.
    """

    def __init__(self, folder: pathlib.Path | None, facts: object):
        self._key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        self._file = None if folder is None else folder / f"pools-{self._key}.npz"
        self._saved = time.monotonic()

    def read(self, shape: tuple[int, ...]) -> tuple[int, np.ndarray] | None:
        """Returns the number of finished blocks and their counts int64 of this shape; None if there are none."""
        if self._file is None:
            return None
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                blocks, ahead = int(stored["blocks"]), stored["ahead"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return (blocks, ahead) if ahead.shape == shape and ahead.dtype == np.int64 else None

    def note(self, blocks: int, ahead: Callable[[], np.ndarray]) -> None:
        """Writes the counts after so many blocks, once a minute."""
        if self._file is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._file) as temporary, open(temporary, "wb") as file:
            np.savez(file, blocks=blocks, ahead=ahead())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Deletes the file when the pass is finished."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
