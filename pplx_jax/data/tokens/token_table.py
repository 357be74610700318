"""Token tables on disk: a folder of `.npy` files and a `manifest.json`, memory-mapped for reading.

A ragged feature NAME is `NAME.values.npy` (tokens of all texts, concatenated) and `NAME.offsets.npy` (int64
[n+1], text i is `values[offsets[i]:offsets[i+1]]`). Any other feature is `NAME.npy`. Training reads these
files with numpy alone. `token_writer.py` writes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.core.memory_map import map_array
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.core.paths import as_path, is_bucket, is_plain_name
from pplx_jax.data.tokens.kinds import FEATURES, FOLDERS, KIND_OF_FOLDER, SIDE_FEATURES
from pplx_jax.data.tokens.ragged import Ragged

if TYPE_CHECKING:
    from pplx_jax.data.tokens.vocabulary import Vocabulary

PathLike = str | os.PathLike[str]

FORMAT = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ends the name of a folder whose table is incomplete
_FIX = "tokenise the corpus again"
_BLOCK = 1 << 20  # offsets that `verify` reads at once


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """A token table opened for reading.

    Attributes:
        features: feature name -> `Ragged` or array, memory-mapped read-only.
        manifest: the content of `manifest.json`.
        folder: the folder of the table.
    """

    features: Mapping[str, Ragged | np.ndarray]
    manifest: Mapping[str, Any]
    folder: pathlib.Path

    @classmethod
    def open(cls, folder: PathLike, *, kind: str | None = None, vocabulary: Vocabulary | None = None) -> TokenTable:
        """Opens the table in `folder`. The time does not depend on its size; `verify` looks at every offset.

        Args:
            folder: a folder that `TokenWriter` wrote.
            kind: if given, the table must hold the features of this kind of example.
            vocabulary: if given, the table must have been tokenised with it.

        Raises:
            BadInput: a file is missing, truncated or inconsistent with the manifest; the vocabulary differs; or a
                feature of the kind is missing.
        """
        folder = local_copy(as_path(folder))
        manifest = _read_manifest(folder / MANIFEST)
        features = {name: _read_feature(folder, name, spec) for name, spec in manifest["features"].items()}
        table = cls(features, manifest, folder)
        if kind is not None:
            missing = [name for name in (*FEATURES[kind], *SIDE_FEATURES[kind]) if name not in features]
            if missing:
                raise BadInput(
                    f"{folder}: a table of kind {table.kind} without {', '.join(missing)}, which kind {kind} has; "
                    f"give a table of kind {kind}"
                )
        made_by = manifest["vocabulary"]["fingerprint"]
        if vocabulary is not None and made_by != vocabulary.fingerprint:
            raise BadInput(
                f"{folder / MANIFEST}: tokens of vocabulary {made_by[:12]}, not of {vocabulary.path} "
                f"({vocabulary.fingerprint[:12]}); {_FIX} with the vocabulary of the model"
            )
        return table

    def verify(self) -> None:
        """Reads every offset of the table. One process of a job is enough.

        Raises:
            BadInput: offsets of a feature decrease somewhere.
        """
        for name, feature in self.features.items():
            if not isinstance(feature, Ragged):
                continue
            for start in range(0, len(feature), _BLOCK):
                if np.any(np.diff(feature.offsets[start : start + _BLOCK + 1]) < 0):
                    raise BadInput(f"{_offsets_path(self.folder, name)}: offsets decrease; {_FIX}")

    def __getitem__(self, name: str) -> Any:
        return self.features[name]

    def __contains__(self, name: str) -> bool:
        return name in self.features

    @property
    def count(self) -> int:
        """Number of examples. Rows after them, if any, hold documents that only serve as negatives."""
        return self.manifest.get("examples", self.manifest["count"])

    @property
    def digest(self) -> str:
        """Hex digits that change with the content. Tables of earlier versions have those of their sizes."""
        sizes = json.dumps([self.manifest["features"], self.count], sort_keys=True)
        return self.manifest.get("digest") or hashlib.sha256(sizes.encode()).hexdigest()[:32]

    @property
    def kind(self) -> str:
        """The kind of the examples, a key of `kinds.FOLDERS`."""
        return KIND_OF_FOLDER[self.manifest["stage"]]

    @property
    def pad_id(self) -> int:
        return self.manifest["vocabulary"]["pad_id"]

    @property
    def separator_id(self) -> int:
        return self.manifest["vocabulary"]["separator_id"]


def holds_tables(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a token table, or a tree of them: KIND/SOURCE/SHARD at most."""
    manifests = (path for depth in range(4) for path in folder.glob(f"{'*/' * depth}{MANIFEST}"))
    return any(describes(path, "format", "stage", "features") for path in manifests)


def holds_triplets(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a token table of triplets."""
    path = folder / MANIFEST
    return path.exists() and _read_manifest(path)["stage"] == FOLDERS["triplet"]


def require_free_of_others(folder: pathlib.Path) -> None:
    """Refuses an output folder that holds anything but token tables and the remains of a killed run.

    Raises:
        BadInput: as `output_folder.require_free`.
    """
    require_free(folder, "token table", lambda folder: holds_tables(folder) or not any(_complete_files(folder)))


def _complete_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    inside = folder.iterdir() if is_bucket(folder) else folder.rglob("*")
    return (path for path in inside if path.is_file() and path.parent.suffix != PARTIAL)


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        raise BadInput(f"{path}: no such file, so {path.parent} is not a token table; {_FIX}")
    manifest = read_json(path, fix=_FIX)
    keys = {"format", "stage", "count", "features", "vocabulary"}
    if manifest.get("format") != FORMAT or not keys <= manifest.keys():
        raise BadInput(f"{path}: not the manifest of a token table of format {FORMAT}; {_FIX}")
    if manifest["stage"] not in KIND_OF_FOLDER:
        raise BadInput(f"{path}: stage {manifest['stage']!r} is not one of {', '.join(KIND_OF_FOLDER)}; {_FIX}")
    if outside := [name for name in manifest["features"] if not is_plain_name(name)]:
        raise BadInput(f"{path} names the feature {outside[0]!r}, which is not a file of the folder; {_FIX}")
    return manifest


def _read_feature(folder: pathlib.Path, name: str, spec: Mapping[str, Any]) -> Ragged | np.ndarray:
    if spec["kind"] != "ragged":
        return _read_array(folder / f"{name}.npy", spec["dtype"], spec["shape"])
    values = _read_array(folder / f"{name}.values.npy", spec["dtype"], spec["shape"])
    path = _offsets_path(folder, name)
    offsets = _read_array(path, "int64", [spec["rows"] + 1])
    if offsets[0] != 0 or offsets[-1] != len(values):
        raise BadInput(f"{path}: offsets do not cover the {len(values)} values; {_FIX}")
    return Ragged(values, offsets)


def _offsets_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.offsets.npy"


def _read_array(path: pathlib.Path, dtype: str, shape: list[int]) -> np.ndarray:
    try:
        array = map_array(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: listed in {MANIFEST} but missing; {_FIX}") from None
    except (ValueError, EOFError, OSError) as error:
        raise BadInput(f"{path}: damaged ({error}); {_FIX}") from None
    if str(array.dtype) != dtype or list(array.shape) != list(shape):
        raise BadInput(f"{path}: holds {array.dtype}{list(array.shape)}, {MANIFEST} says {dtype}{list(shape)}; {_FIX}")
    return array
