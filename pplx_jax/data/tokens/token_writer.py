"""Writes token tables. Blocks are streamed to disk, so a table may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.core.output_folder import take_place
from pplx_jax.core.paths import as_path, is_bucket
from pplx_jax.data.tokens.kinds import FEATURES, FOLDERS, SIDE_FEATURES
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_table import FORMAT, MANIFEST, PARTIAL, PathLike, require_free_of_others

if TYPE_CHECKING:
    from pplx_jax.data.tokens.vocabulary import Vocabulary


class TokenWriter:
    """Writes a table block by block, into a temporary folder that is renamed when the `with` block succeeds.

    A former table of that name is replaced. A folder that holds anything else raises `BadInput` at the start.

    Attributes:
        notes: further entries of the manifest.

    Example:
        with TokenWriter(folder, "text", vocabulary) as writer:
            writer.append(tokens=Ragged.from_arrays([[5, 6], [7]]))
    """

    def __init__(self, folder: PathLike, kind: str, vocabulary: Vocabulary):
        self.folder = as_path(folder)
        self.notes: dict[str, Any] = {}
        self._kind = kind
        self._vocabulary = {
            name: getattr(vocabulary, name) for name in ("fingerprint", "size", "pad_id", "mask_id", "separator_id")
        }
        self._scratch = tempfile.TemporaryDirectory(prefix="pplx-jax-") if is_bucket(self.folder) else None
        place = pathlib.Path(self._scratch.name) if self._scratch else self.folder.parent
        self._partial = place / (self.folder.name + PARTIAL)
        self._columns: dict[str, _RaggedColumn | _ArrayFile] = {}

    def __enter__(self) -> TokenWriter:
        require_free_of_others(self.folder)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            for column in self._columns.values():
                column.close()
            if failure is None:
                self._write_manifest()
                take_place(self._partial, self.folder, last=MANIFEST)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, **features: Ragged | np.ndarray) -> None:
        """Adds rows to some features. All features of the kind must have equally many rows at the end."""
        for name, block in features.items():
            if name not in self._columns:
                kind = _RaggedColumn if isinstance(block, Ragged) else _ArrayFile
                self._columns[name] = kind(self._partial, name)
            self._columns[name].append(block)

    def rows(self, name: str) -> int:
        """Returns how many rows a feature has so far."""
        return self._columns[name].rows if name in self._columns else 0

    def _write_manifest(self) -> None:
        counts = {name: self.rows(name) for name in FEATURES[self._kind]}
        missing = [name for name in (*FEATURES[self._kind], *SIDE_FEATURES[self._kind]) if name not in self._columns]
        if missing or len(set(counts.values())) != 1:
            raise ValueError(f"{self.folder}: features missing {missing} or of different lengths {counts}")
        manifest = {
            "format": FORMAT,
            "stage": FOLDERS[self._kind],
            "count": next(iter(counts.values())),
            "features": {name: column.spec() for name, column in self._columns.items()},
            "vocabulary": self._vocabulary,
            "digest": self._digest(),
            **self.notes,
        }
        (self._partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def _digest(self) -> str:
        """Returns 32 hex digits of the content of all features."""
        digest = hashlib.blake2b(digest_size=16)
        for name, column in sorted(self._columns.items()):
            digest.update(json.dumps([name, column.spec(), column.digest()]).encode())
        return digest.hexdigest()


def write_table(
    folder: PathLike,
    kind: str,
    vocabulary: Vocabulary,
    features: Mapping[str, Ragged | np.ndarray],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a table that is in memory already; `notes` are further entries of the manifest."""
    with TokenWriter(folder, kind, vocabulary) as writer:
        writer.notes.update(notes or {})
        writer.append(**features)


class _ArrayFile:
    """A `.npy` file that grows by blocks of rows."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.rows = 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._dtype: np.dtype | None = None
        self._tail: tuple[int, ...] = ()
        self._content = hashlib.blake2b(digest_size=16)

    def append(self, block: Any) -> None:
        block = np.ascontiguousarray(block)
        if self._dtype is None:
            self._dtype, self._tail = block.dtype, block.shape[1:]
            self._write_header()
        if (block.dtype, block.shape[1:]) != (self._dtype, self._tail):
            raise ValueError(f"{self._file.name}: block {block.dtype}{block.shape} after {self._dtype}{self._tail}")
        block.tofile(self._file)
        self._content.update(block.data.cast("B") if block.size else b"")
        self.rows += len(block)

    def close(self) -> None:
        if self._dtype is not None:
            # numpy pads the header so that a longer first axis still fits in the same bytes.
            self._file.seek(0)
            self._write_header()
        self._file.close()

    def digest(self) -> str:
        return self._content.hexdigest()

    def spec(self) -> dict[str, Any]:
        return {"kind": "array", "dtype": str(self._dtype), "shape": [self.rows, *self._tail]}

    def _write_header(self) -> None:
        assert self._dtype is not None
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self._tail)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()


class _RaggedColumn:
    """The two files of a ragged feature."""

    def __init__(self, folder: pathlib.Path, name: str):
        self._values = _ArrayFile(folder, f"{name}.values")
        self._offsets = _ArrayFile(folder, f"{name}.offsets")
        self._offsets.append(np.zeros(1, np.int64))

    @property
    def rows(self) -> int:
        return self._offsets.rows - 1

    def append(self, block: Any) -> None:
        start = self._values.rows
        self._values.append(block.values[block.offsets[0] : block.offsets[-1]])
        self._offsets.append(block.offsets[1:] - block.offsets[0] + start)

    def close(self) -> None:
        self._values.close()
        self._offsets.close()

    def digest(self) -> str:
        return self._values.digest() + self._offsets.digest()

    def spec(self) -> dict[str, Any]:
        return {**self._values.spec(), "kind": "ragged", "rows": self.rows}
