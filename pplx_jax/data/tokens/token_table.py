"""Token tables on disk: a folder of `.npy` files and a `manifest.json`, memory-mapped when read.

A ragged feature NAME is `NAME.values.npy` (tokens of all texts end to end) and `NAME.offsets.npy` (int64
[n+1], text i is `values[offsets[i]:offsets[i+1]]`); any other feature is `NAME.npy`. Training reads these
files with numpy alone. The writer streams blocks to disk, so a table may be larger than memory, and the
folder appears under its name only once complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import describes, require_free, take_place
from pplx_jax.data.tokens.ragged import Ragged

if TYPE_CHECKING:
    from pplx_jax.data.tokens.vocabulary import Vocabulary

PathLike = str | os.PathLike[str]

FORMAT = 1
MANIFEST = "manifest.json"
# Where the tables of each kind of examples are, below data/tokens.
FOLDERS: Mapping[str, str] = {"text": "diffusion", "pair": "pair", "triplet": "triplet", "contextual": "contextual"}
STAGE_FEATURES: Mapping[str, tuple[str, ...]] = {
    "diffusion": ("tokens",),
    "pair": ("query", "document", "document_hash", "source"),
    "triplet": ("query", "document", "document_hash", "source", "negatives"),
    "contextual": ("query", "document", "chunk", "document_hash", "chunks", "chunks_of_document"),
}
# The features of a contextual table that are indexed by chunk or document instead of by example.
SIDE_FEATURES = ("chunks", "chunks_of_document")
_PARTIAL = ".partial"  # ends the name of a folder whose table is not whole
_MEND = "tokenise the corpus again"


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """A token table opened for reading.

    Attributes:
        features: feature name -> `Ragged` or array, memory-mapped read-only.
        manifest: the content of `manifest.json`.
        folder: where the table lies.
    """

    features: Mapping[str, Ragged | np.ndarray]
    manifest: Mapping[str, Any]
    folder: pathlib.Path

    @classmethod
    def open(cls, folder: PathLike, *, stage: str | None = None, vocabulary: Vocabulary | None = None) -> TokenTable:
        """Opens the table in `folder`.

        Args:
            folder: a folder that `TokenWriter` wrote.
            stage: when given, the table must hold the features of this stage.
            vocabulary: when given, the table must have been tokenised with it.

        Raises:
            BadInput: a file is missing, cut short or inconsistent; another vocabulary; features of the stage
                missing.
        """
        folder = pathlib.Path(folder)
        manifest = _read_manifest(folder / MANIFEST)
        features = {name: _read_feature(folder, name, spec) for name, spec in manifest["features"].items()}
        missing = [name for name in STAGE_FEATURES[stage] if name not in features] if stage else []
        if missing:
            raise BadInput(
                f"{folder}: a {manifest['stage']} table without {', '.join(missing)}, which stage {stage} "
                f"reads; point the stage at a {stage} table"
            )
        made_by = manifest["vocabulary"]["fingerprint"]
        if vocabulary is not None and made_by != vocabulary.fingerprint:
            raise BadInput(
                f"{folder / MANIFEST}: tokens of vocabulary {made_by[:12]}, not of {vocabulary.path} "
                f"({vocabulary.fingerprint[:12]}); {_MEND} with the vocabulary of the model"
            )
        return cls(features, manifest, folder)

    def __getitem__(self, name: str) -> Any:
        return self.features[name]

    def __contains__(self, name: str) -> bool:
        return name in self.features

    @property
    def count(self) -> int:
        """Number of examples. Rows after them, if any, hold documents that only serve as negatives."""
        return self.manifest.get("examples", self.manifest["count"])

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def pad_id(self) -> int:
        return self.manifest["vocabulary"]["pad_id"]

    @property
    def separator_id(self) -> int:
        return self.manifest["vocabulary"]["separator_id"]


class TokenWriter:
    """Writes a table block by block; the folder gets its name when the `with` block ends without an error.

    A table of that name is replaced; a folder of anything else is `BadInput` at the start of the block.

    Example:
        with TokenWriter(folder, "diffusion", vocabulary) as writer:
            writer.append(tokens=Ragged.from_arrays([[5, 6], [7]]))
    """

    def __init__(self, folder: PathLike, stage: str, vocabulary: Vocabulary):
        self.folder = pathlib.Path(folder)
        self.notes: dict[str, Any] = {}
        self._stage = stage
        self._vocabulary = {
            name: getattr(vocabulary, name) for name in ("fingerprint", "size", "pad_id", "mask_id", "separator_id")
        }
        self._partial = self.folder.with_name(self.folder.name + _PARTIAL)
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
                take_place(self._partial, self.folder)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, **features: Ragged | np.ndarray) -> None:
        """Adds rows to the named features (any subset: the features need to agree only at the end)."""
        for name, block in features.items():
            if name not in self._columns:
                kind = _RaggedColumn if isinstance(block, Ragged) else _ArrayFile
                self._columns[name] = kind(self._partial, name)
            self._columns[name].append(block)

    def rows(self, name: str) -> int:
        """Rows appended to a feature so far."""
        return self._columns[name].rows if name in self._columns else 0

    def _write_manifest(self) -> None:
        counts = {name: self.rows(name) for name in STAGE_FEATURES[self._stage] if name not in SIDE_FEATURES}
        missing = [name for name in STAGE_FEATURES[self._stage] if name not in self._columns]
        if missing or len(set(counts.values())) != 1:
            raise ValueError(f"{self.folder}: features missing {missing} or of different lengths {counts}")
        manifest = {
            "format": FORMAT,
            "stage": self._stage,
            "count": next(iter(counts.values())),
            "features": {name: column.spec() for name, column in self._columns.items()},
            "vocabulary": self._vocabulary,
            **self.notes,
        }
        (self._partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def write_table(
    folder: PathLike,
    stage: str,
    vocabulary: Vocabulary,
    features: Mapping[str, Ragged | np.ndarray],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a table that is already in memory; `notes` are further entries of the manifest."""
    with TokenWriter(folder, stage, vocabulary) as writer:
        writer.notes.update(notes or {})
        writer.append(**features)


class _ArrayFile:
    """A `.npy` file that grows by blocks of rows."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.rows = 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._dtype: np.dtype | None = None
        self._tail: tuple[int, ...] = ()

    def append(self, block: Any) -> None:
        block = np.ascontiguousarray(block)
        if self._dtype is None:
            self._dtype, self._tail = block.dtype, block.shape[1:]
            self._write_header()
        if (block.dtype, block.shape[1:]) != (self._dtype, self._tail):
            raise ValueError(f"{self._file.name}: block {block.dtype}{block.shape} after {self._dtype}{self._tail}")
        block.tofile(self._file)
        self.rows += len(block)

    def close(self) -> None:
        if self._dtype is not None:
            # numpy pads the header so that a longer first axis still fits in the same bytes.
            self._file.seek(0)
            self._write_header()
        self._file.close()

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

    def spec(self) -> dict[str, Any]:
        return {**self._values.spec(), "kind": "ragged", "rows": self.rows}


def holds_tables(folder: pathlib.Path) -> bool:
    """Whether a folder is a token table, or a tree of them: STAGE/SOURCE/SHARD at most."""
    manifests = (path for depth in range(4) for path in folder.glob(f"{'*/' * depth}{MANIFEST}"))
    return any(describes(path, "format", "stage", "features") for path in manifests)


def holds_triplets(folder: pathlib.Path) -> bool:
    """Whether a folder is a token table of stage triplet."""
    return (folder / MANIFEST).exists() and _read_manifest(folder / MANIFEST)["stage"] == "triplet"


def require_free_of_others(folder: pathlib.Path) -> None:
    """Refuses a folder to be written in which anything but token tables, and what a killed run left, would be lost.

    Raises:
        BadInput: as `output_folder.require_free`.
    """
    require_free(folder, "token table", lambda folder: holds_tables(folder) or not any(_whole_files(folder)))


def _whole_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.parent.suffix != _PARTIAL)


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file, so {path.parent} is no token table; {_MEND}") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); {_MEND}") from None
    keys = {"format", "stage", "count", "features", "vocabulary"}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not keys <= manifest.keys():
        raise BadInput(f"{path}: not the manifest of a token table of format {FORMAT}; {_MEND}")
    return manifest


def _read_feature(folder: pathlib.Path, name: str, spec: Mapping[str, Any]) -> Ragged | np.ndarray:
    if spec["kind"] != "ragged":
        return _read_array(folder / f"{name}.npy", spec["dtype"], spec["shape"])
    values = _read_array(folder / f"{name}.values.npy", spec["dtype"], spec["shape"])
    path = folder / f"{name}.offsets.npy"
    offsets = _read_array(path, "int64", [spec["rows"] + 1])
    if offsets[0] != 0 or offsets[-1] != len(values) or np.any(offsets[1:] < offsets[:-1]):
        raise BadInput(f"{path}: offsets do not cover the {len(values)} values in order; {_MEND}")
    return Ragged(values, offsets)


def _read_array(path: pathlib.Path, dtype: str, shape: list[int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # memmap slices slowly
    except FileNotFoundError:
        raise BadInput(f"{path}: listed in {MANIFEST} but missing; {_MEND}") from None
    except (ValueError, EOFError, OSError) as error:
        raise BadInput(f"{path}: not a whole .npy file ({error}); {_MEND}") from None
    if str(array.dtype) != dtype or list(array.shape) != list(shape):
        raise BadInput(f"{path}: holds {array.dtype}{list(array.shape)}, {MANIFEST} says {dtype}{list(shape)}; {_MEND}")
    return array
