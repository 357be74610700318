"""The folder that `embed` writes: shards of vectors, a description of each vector, and a manifest.

    00000.npy      [n, width] vectors in input order; int8, uint8 (packed signs) or float32
    00000.jsonl    one object per vector: {"id", "text", "row", "document"?, "chunk"?, "start"?, "end"?, "path"?,
                   "line"?, "empty"?}; start and end are character offsets of the chunk in its text
    00000.json     until all shards are finished: the numbers of this one
    progress.json  until all shards are finished: the settings
    manifest.json  the settings and the numbers of all shards, when they are finished

A shard counts only when its NNNNN.json exists, which is written last. So an interruption loses at most one shard of
each worker, and workers that share a folder can write its shards in any order.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, read_json_if_valid, write_json, write_text
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.core.paths import is_bucket, joined, relative, resolved
from pplx_jax.data.io.json_lines import parse_object
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import BitOrder, Quantization

FORMAT = 2
# Settings that vectors must share to be compared with each other.
COMMON = ("model_fingerprint", "dims", "quantization", "bit_order", "prompts")
MANIFEST, PROGRESS = "manifest.json", "progress.json"
_OF_SHARD = re.compile(r"\d{5,}\.json")
_FIX = "delete the folder and embed again"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the bytes of the shards depend on. A run resumes only with equal settings.

    Attributes:
        model_fingerprint: of the model.
        input_sha256: of the input file, or of the digests of several.
        dims: number of dimensions before packing.
        quantization: "int8", "binary", "ubinary", "tanh" or "none".
        bit_order: of "ubinary", "big" or "little".
        text_field, chunks_field: names of the columns.
        shard_size: input rows per shard; None for the sizes of `shard_plan`.
        chunk_tokens: maximum tokens of the chunks that texts were split into; None if they were not split.
        overflow: what happened to texts over the limit; "error" skipped them.
        overlap: tokens shared by the windows of "split"; None for the model's default.
        prompts: arguments of `load_encoder`, if the model was loaded with other prompts than its own.
        deterministic: whether each row was encoded by itself.
    """

    model_fingerprint: str
    input_sha256: str
    dims: int
    quantization: Quantization
    bit_order: BitOrder
    text_field: str
    chunks_field: str
    shard_size: int | None
    chunk_tokens: int | None
    overflow: Overflow
    overlap: int | None
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: numbers of input rows, vectors and tokens, seconds, and the skipped rows with reasons."""

    rows: int
    count: int
    tokens: int
    seconds: float
    skipped: list[dict[str, Any]]


class EmbeddingFolder:
    """The shards of one folder."""

    def __init__(self, path: pathlib.Path, settings: Settings, model: str, finished: dict[int, Shard], complete: bool):
        """Use `open_for_writing` or `read` instead. `model` is the path of the model folder, relative to `path`."""
        self.path = path
        self._readable = path
        self.settings = settings
        self.model = model
        self.finished = finished
        self.complete = complete

    @classmethod
    def open_for_writing(
        cls, path: pathlib.Path, settings: Settings, model: pathlib.Path, *, alone: bool = True
    ) -> "EmbeddingFolder":
        """Starts a folder, or opens an unfinished one with equal settings to resume.

        Args:
            path: the folder.
            settings: of the embeddings.
            model: the model folder.
            alone: whether no other worker writes to the folder now. Then files of an interrupted one are removed.

        Raises:
            BadInput: the folder contains something else, embeddings with other settings (the message names the first
                difference), or a damaged shard.
        """
        require_free(path, "embeddings", _is_begun)
        path.mkdir(parents=True, exist_ok=True)
        for temporary in _temporary_files(path) if alone else ():
            temporary.unlink(missing_ok=True)
        if not any((path / name).exists() for name in (MANIFEST, PROGRESS)):
            write_json(path / PROGRESS, cls(path, settings, relative(model, path), {}, complete=False)._content())
        folder = cls._read(path)
        if alone and (kept := folder._kept_with(settings)) is not None:
            folder._restart(settings, relative(model, path), kept)
            folder = cls._read(path)
        for field in dataclasses.fields(Settings):
            old, new = getattr(folder.settings, field.name), getattr(settings, field.name)
            if old != new:
                raise BadInput(
                    f"{path} holds embeddings with {field.name}={old!r}, not {new!r}; "
                    "give another --output or delete that folder"
                )
        if is_bucket(path):
            folder._require_all_objects()
        else:
            folder._require_complete()
        if folder.complete and alone:
            folder._remove_progress()  # of a worker that finished a shard after another one had
        return folder

    def _kept_with(self, settings: Settings) -> set[int] | None:
        """Returns the finished shards that are also those of a corrected command; None if it is no correction.

        A command without any vectors failed as a whole. One that refused texts over the limit has shards without such
        texts, which are the same for every `overflow`.
        """
        names = [field.name for field in dataclasses.fields(Settings)]
        changed = {name for name in names if getattr(self.settings, name) != getattr(settings, name)}
        if changed and self.finished and not self.totals()["count"]:
            return set()
        if changed and changed <= {"overflow", "overlap"} and self.settings.overflow == "error":
            return {
                number for number, shard in self.finished.items() if not any("too_long" in row for row in shard.skipped)
            }
        return None

    def _restart(self, settings: Settings, model: str, kept: set[int]) -> None:
        """Makes this an unfinished folder of other settings, with some of its shards."""
        dropped = self.finished.keys() - kept
        for number in kept:
            write_json(self._file(number, "json"), dataclasses.asdict(self.finished[number]))
        for number in dropped:
            self._file(number, "json").unlink(missing_ok=True)
        write_json(self.path / PROGRESS, EmbeddingFolder(self.path, settings, model, {}, complete=False)._content())
        (self.path / MANIFEST).unlink(missing_ok=True)
        for number in dropped:
            for suffix in ("npy", "jsonl"):
                self._file(number, suffix).unlink(missing_ok=True)

    @classmethod
    def shard_size_of(cls, path: pathlib.Path) -> int | None:
        """Returns the `shard_size` of a folder that was begun; None if there is none."""
        content = next((found for name in (MANIFEST, PROGRESS) if (found := read_json_if_valid(path / name))), {})
        settings = content.get("settings")
        size = settings.get("shard_size") if isinstance(settings, dict) else None
        return size if isinstance(size, int) and size > 0 else None

    @classmethod
    def read(cls, path: pathlib.Path) -> "EmbeddingFolder":
        """Opens a finished folder.

        Raises:
            BadInput: there are no embeddings, or they are unfinished or damaged.
        """
        folder = cls._read(path)
        if not folder.complete:
            raise BadInput(
                f"{path} is unfinished ({len(folder.finished)} shards); run the same `embed` again to finish it"
            )
        folder._require_complete()
        return folder

    @classmethod
    def _read(cls, path: pathlib.Path) -> "EmbeddingFolder":
        # The manifest last: when it is written, the other files are removed.
        of_shards = {int(file.stem): file for file in path.glob("*.json") if _OF_SHARD.fullmatch(file.name)}
        finished: dict[int, Any] = {number: read_json_if_valid(file) for number, file in of_shards.items()}
        for name in (MANIFEST, PROGRESS):
            if (path / name).exists():
                break
        else:
            raise BadInput(f"no embeddings in {path}: give the --output folder of `embed`")
        content = read_json(path / name, fix=_FIX)
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
            listed = dict(enumerate(content["shards"]))  # in progress.json of earlier versions too
            found = listed if name == MANIFEST else {**listed, **{n: one for n, one in finished.items() if one}}
            shards = {number: Shard(**found[number]) for number in sorted(found)}
            settings = Settings(**content["settings"])
            return cls(path, settings, content["model"], shards, complete=name == MANIFEST)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path / name} cannot be used ({error}); {_FIX}") from None

    def _require_all_objects(self) -> None:
        """Raises BadInput if an object of a finished shard is missing. An object is complete or absent."""
        held = {path.name for path in self.path.iterdir()}
        for number in self.finished:
            for file in (self._file(number, suffix) for suffix in ("npy", "jsonl")):
                if file.name not in held:
                    raise BadInput(f"{file} is missing; {_FIX}")

    def _require_complete(self) -> None:
        """Raises BadInput if a shard is missing or has another size than when it was written."""
        self._readable = local_copy(self.path)
        for number, shard in self.finished.items():
            vectors, lines = (self._readable / self._file(number, suffix).name for suffix in ("npy", "jsonl"))
            try:
                count = len(np.load(vectors, mmap_mode="r"))
                with open(lines, "rb") as file:
                    described = sum(line.endswith(b"\n") for line in file)
            except FileNotFoundError as error:
                raise BadInput(f"{error.filename} is missing; {_FIX}") from None
            except (OSError, ValueError, TypeError, EOFError) as error:
                raise BadInput(f"{vectors} is damaged ({error}); {_FIX}") from None
            if count != shard.count:
                raise BadInput(f"{vectors}: {count} vectors of {shard.count}; {_FIX}")
            if described != shard.count:
                raise BadInput(f"{lines}: {described} lines of {shard.count} vectors; {_FIX}")

    @property
    def model_folder(self) -> pathlib.Path:
        """The folder of the model that made the embeddings."""
        return joined(resolved(self.path), self.model)

    def add(self, number: int, vectors: np.ndarray, described: list[dict[str, Any]], shard: Shard) -> None:
        """Writes a shard: vectors [n, width] and one object per vector."""
        with atomic_path(self._file(number, "npy")) as temporary, open(temporary, "wb") as file:
            np.save(file, vectors)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in described)
        write_text(self._file(number, "jsonl"), "".join(lines))
        write_json(self._file(number, "json"), dataclasses.asdict(shard))
        self.finished[number] = shard

    def refresh(self) -> None:
        """Reads again which shards are finished, for those of other workers."""
        found = self._read(self.path)
        self.finished, self.complete = found.finished, found.complete

    def finish(self) -> None:
        """Writes the manifest, when all shards are finished."""
        self.finished = dict(sorted(self.finished.items()))
        write_json(self.path / MANIFEST, self._content())
        self._remove_progress()
        self.complete = True

    def _remove_progress(self) -> None:
        for number in self.finished:
            self._file(number, "json").unlink(missing_ok=True)
        (self.path / PROGRESS).unlink(missing_ok=True)

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "settings": dataclasses.asdict(self.settings),
            **self.totals(),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }

    def _file(self, number: int, suffix: str) -> pathlib.Path:
        return self.path / f"{number:05d}.{suffix}"

    @property
    def shards(self) -> list[Shard]:
        """The finished shards, in order."""
        return list(self.finished.values())

    def totals(self) -> dict[str, Any]:
        """Returns sums over the finished shards."""
        return {
            "count": sum(shard.count for shard in self.shards),
            "tokens": sum(shard.tokens for shard in self.shards),
            "seconds": round(sum(shard.seconds for shard in self.shards), 3),
            "skipped": sum(len(shard.skipped) for shard in self.shards),
        }

    def vector_paths(self) -> list[pathlib.Path]:
        """Returns the file of each shard's vectors, in order, on this machine."""
        return [self._readable / self._file(number, "npy").name for number in self.finished]

    def line_paths(self) -> list[pathlib.Path]:
        """Returns the file of each shard's descriptions, in order, on this machine."""
        return [self._readable / self._file(number, "jsonl").name for number in self.finished]

    def vectors(self) -> Iterator[np.ndarray]:
        """Yields the memory-mapped vectors of each shard, in order."""
        for path in self.vector_paths():
            yield np.load(path, mmap_mode="r")

    def described(self) -> Iterator[dict[str, Any]]:
        """Yields the description of each vector, in order. Raises BadInput like `described_of`."""
        for place in range(len(self.shards)):
            yield from (row for _, row in self.described_of(place))

    def described_of(self, place: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields, for each vector of a shard, the byte offset of its line and its description.

        Raises:
            BadInput: a line is damaged; the message names it.
        """
        path, offset = self.line_paths()[place], 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = parse_described(line)
                except ValueError as error:
                    raise BadInput(f"{path}, line {number}: {error}; {_FIX}") from None
                yield offset, row
                offset += len(line)


def document_of(described: dict[str, Any]) -> str:
    """Returns the id of the document of a described vector or a hit: of the whole row, for a chunk too."""
    return described.get("document", described["id"])


def parse_described(line: bytes) -> dict[str, Any]:
    """Parses the description of a vector.

    Raises:
        ValueError: the line is not a description.
    """
    described = parse_object(line)
    for name, kind in {"id": str, "text": str, "row": int}.items():
        if not isinstance(described.get(name), kind):
            raise ValueError(f'"{name}" is {described.get(name)!r}')
    return described


def _is_begun(path: pathlib.Path) -> bool:
    """Returns whether `embed` started here, also if it was interrupted before it finished its first file."""
    described = (describes(path / name, "format", "settings", "shards") for name in (MANIFEST, PROGRESS))
    return any(described) or len(list(path.iterdir())) == len(_temporary_files(path))


def _temporary_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the temporary files of `atomic_path` that an interrupted `embed` left, and no other files."""
    name = re.compile(r"\.(\d{5,}\.(npy|jsonl|json)|progress\.json|manifest\.json)\.[0-9a-f]+\.tmp")
    entries = path.iterdir() if path.is_dir() else ()  # an empty folder in a bucket does not exist
    return [entry for entry in entries if name.fullmatch(entry.name)]
