"""The folder that `embed` leaves: shards of vectors, what each vector belongs to, and a manifest.

    00000.npy      [n, width] vectors in input order; int8, uint8 (packed signs) or float32
    00000.jsonl    one object a vector: {"id", "text", "row", "document"?, "chunk"?, "start"?, "end"?, "path"?,
                   "line"?, "empty"?}; start and end are characters of the text that the chunk was cut from
    progress.json  while it grows, from the first: the settings and the finished shards
    manifest.json  the same, once all shards are there

A shard counts only when progress.json lists it, and that file is replaced after the shard is whole, so a kill
at any moment costs at most the shard at work.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, write_json, write_text
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.data.io import json_lines as rows
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import BitOrder, Quantization

FORMAT = 2
_MEND = "delete the folder and embed again"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides every byte of the shards; a folder grows only under equal settings.

    Attributes:
        model_fingerprint: the model that encoded.
        input_sha256: of the input file.
        dims: width of the vectors before packing.
        quantization: "int8", "binary", "ubinary", "tanh" or "none".
        bit_order: of "ubinary", "big" or "little".
        text_field, chunks_field: the columns read.
        shard_size: input rows a shard.
        chunk_tokens: tokens of the chunks that texts were cut in; None where they were not.
        overflow: what happened to texts past the limit: "error" left them out.
        overlap: tokens that the windows of "split" share; None for the model's own choice.
    """

    model_fingerprint: str
    input_sha256: str
    dims: int
    quantization: Quantization
    bit_order: BitOrder
    text_field: str
    chunks_field: str
    shard_size: int
    chunk_tokens: int | None
    overflow: Overflow
    overlap: int | None


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: rows taken, vectors made, tokens read, seconds spent, rows left out and why."""

    rows: int
    count: int
    tokens: int
    seconds: float
    skipped: list[dict[str, Any]]


class EmbeddingFolder:
    """The shards under one folder."""

    def __init__(self, path: pathlib.Path, settings: Settings, model: str, shards: list[Shard], complete: bool):
        """Use `open_for_writing` or `read`. `model` is the model folder relative to `path`."""
        self.path = path
        self.settings = settings
        self.model = model
        self.shards = shards
        self.complete = complete

    @classmethod
    def open_for_writing(cls, path: pathlib.Path, settings: Settings, model: pathlib.Path) -> "EmbeddingFolder":
        """Starts a folder, or goes on with one whose settings are equal.

        Raises:
            BadInput: the folder holds something else, embeddings under other settings, where the message names the
            first that differs, or a shard that is not whole any more.
        """
        require_free(path, "embeddings", _is_begun)
        path.mkdir(parents=True, exist_ok=True)
        for half_written in _half_written(path):  # a kill's
            half_written.unlink(missing_ok=True)
        if not any(path.iterdir()):
            # ".." behind a link is of what it points to.
            relative = os.path.relpath(os.path.realpath(model), os.path.realpath(path))
            folder = cls(path, settings, relative, [], complete=False)
            folder._write("progress.json")
            return folder
        folder = cls._read(path)
        for field in dataclasses.fields(Settings):
            old, new = getattr(folder.settings, field.name), getattr(settings, field.name)
            if old != new:
                raise BadInput(
                    f"{path} holds embeddings with {field.name}={old!r}, not {new!r}; "
                    "give another --output or delete that folder"
                )
        folder._require_whole()
        return folder

    @classmethod
    def read(cls, path: pathlib.Path) -> "EmbeddingFolder":
        """Opens a finished folder.

        Raises:
            BadInput: there are no embeddings, or they are not finished or not whole.
        """
        folder = cls._read(path)
        if not folder.complete:
            raise BadInput(f"{path} is unfinished ({len(folder.shards)} shards); run the same `embed` again to end it")
        folder._require_whole()
        return folder

    @classmethod
    def _read(cls, path: pathlib.Path) -> "EmbeddingFolder":
        for name in ("manifest.json", "progress.json"):
            if (path / name).exists():
                break
        else:
            raise BadInput(f"no embeddings in {path}: give the --output folder of `embed`")
        content = read_json(path / name, fix=_MEND)
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
            shards = [Shard(**shard) for shard in content["shards"]]
            settings = Settings(**content["settings"])
            return cls(path, settings, content["model"], shards, complete=name == "manifest.json")
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path / name} cannot be used ({error}); {_MEND}") from None

    def _require_whole(self) -> None:
        """Raises BadInput that names a shard which is missing, cut short or longer than it was written."""
        for vectors, lines, shard in zip(self.vector_paths(), self._line_paths(), self.shards, strict=True):
            try:
                count = len(np.load(vectors, mmap_mode="r"))
                with open(lines, "rb") as file:
                    described = sum(line.endswith(b"\n") for line in file)
            except FileNotFoundError as error:
                raise BadInput(f"{error.filename} is missing; {_MEND}") from None
            except (OSError, ValueError, TypeError, EOFError) as error:
                raise BadInput(f"{vectors} is damaged ({error}); {_MEND}") from None
            if count != shard.count:
                raise BadInput(f"{vectors}: {count} vectors of {shard.count}; {_MEND}")
            if described != shard.count:
                raise BadInput(f"{lines}: {described} lines of {shard.count} vectors; {_MEND}")

    def add(self, vectors: np.ndarray, described: list[dict[str, Any]], shard: Shard) -> None:
        """Writes the next shard: vectors [n, width] and one object a vector."""
        stem = f"{len(self.shards):05d}"
        with atomic_path(self.path / f"{stem}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, vectors)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in described)
        write_text(self.path / f"{stem}.jsonl", "".join(lines))
        self.shards.append(shard)
        self._write("progress.json")

    def finish(self) -> None:
        """Puts the manifest in the place of the progress file."""
        self._write("progress.json")
        (self.path / "progress.json").replace(self.path / "manifest.json")
        self.complete = True

    def _write(self, name: str) -> None:
        content = {
            "format": FORMAT,
            "model": self.model,
            "settings": dataclasses.asdict(self.settings),
            **self.totals(),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }
        write_json(self.path / name, content)

    def totals(self) -> dict[str, Any]:
        """Sums over the finished shards."""
        return {
            "count": sum(shard.count for shard in self.shards),
            "tokens": sum(shard.tokens for shard in self.shards),
            "seconds": round(sum(shard.seconds for shard in self.shards), 3),
            "skipped": sum(len(shard.skipped) for shard in self.shards),
        }

    def vector_paths(self) -> list[pathlib.Path]:
        """The file of each shard's vectors, in order."""
        return [self.path / f"{place:05d}.npy" for place in range(len(self.shards))]

    def vectors(self) -> Iterator[np.ndarray]:
        """Yields the memory-mapped vectors of each shard, in order."""
        for path in self.vector_paths():
            yield np.load(path, mmap_mode="r")

    def _line_paths(self) -> list[pathlib.Path]:
        return [self.path / f"{place:05d}.jsonl" for place in range(len(self.shards))]

    def described(self) -> Iterator[dict[str, Any]]:
        """Yields what is known of each vector, in order. Raises BadInput as `described_of`."""
        for place in range(len(self.shards)):
            yield from (row for _, row in self.described_of(place))

    def described_of(self, place: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields of each vector of a shard where its line begins, in bytes, and what is known of it.

        Raises:
            BadInput: a line is damaged; the message names it.
        """
        path, offset = self._line_paths()[place], 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = parse_described(line)
                except ValueError as error:
                    raise BadInput(f"{path}, line {number}: {error}; {_MEND}") from None
                yield offset, row
                offset += len(line)


def parse_described(line: bytes) -> dict[str, Any]:
    """Parses a line that `embed` wrote of a vector.

    Raises:
        ValueError: it is none.
    """
    described = rows.parse_object(line)
    for name, kind in {"id": str, "text": str, "row": int}.items():
        if not isinstance(described.get(name), kind):
            raise ValueError(f'"{name}" is {described.get(name)!r}')
    return described


def _is_begun(path: pathlib.Path) -> bool:
    """Whether `embed` was here, if only for the moment before its first file had its name."""
    described = (describes(path / name, "format", "settings", "shards") for name in ("manifest.json", "progress.json"))
    return any(described) or len(list(path.iterdir())) == len(_half_written(path))


def _half_written(path: pathlib.Path) -> list[pathlib.Path]:
    """What a kill left of `atomic_path`, and nothing that somebody else named so."""
    name = re.compile(r"\.(\d{5}\.(npy|jsonl)|progress\.json|manifest\.json)\.[0-9a-f]+\.tmp")
    return [entry for entry in path.iterdir() if name.fullmatch(entry.name)]
