"""Rows of JSON lines, Parquet, TFRecord, TFDS and BEIR folders, each with the place it stands at.

A row that cannot be read at all is given as `Unreadable`; the file goes on after it. Texts come as bytes or str:
whoever asks for a text decodes it, and so finds what is not UTF-8.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import paths
from pplx_jax.data.io.parquet import damaged, parquet_rows

Format = Literal["auto", "jsonl", "parquet", "tfrecord", "tfds", "beir"]
Row = dict[str, Any]

_ENDINGS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".tfrecord": "tfrecord"}


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A row that is none, and why."""

    reason: str


def list_shards(path: str, format: Format, split: str) -> list[str]:
    """What can be read apart from one another: files, the shards of a TFDS split, BEIR folders.

    Raises:
        BadInput: there are none.
    """
    if format == "tfds":
        return [f"{split}[{shard}shard]" for shard in range(_tfds_builder(path).info.splits[split].num_shards)]
    return paths.expand(path)


def read_rows(path: str, shard: str, format: Format, split: str) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yields ("FILE:LINE", row) of one shard, in order. A Parquet, TFRecord or TFDS row counts as a line.

    Args:
        path: of the source.
        shard: one of `list_shards`.
        format: of the shard; "auto" goes by the ending of its name.
        split: of TFDS and BEIR.

    Raises:
        BadInput: the shard cannot be opened or is damaged, or needs a package that is not installed.
    """
    match format_of(shard) if format == "auto" else format:
        case "jsonl":
            yield from _json_lines(shard)
        case "parquet":
            yield from _parquet(shard)
        case "tfrecord":
            yield from _tfrecord(shard)
        case "tfds":
            yield from _tfds(path, shard)
        case "beir":
            yield from _beir(shard, split)


def format_of(path: str) -> str:
    """The format that a file's name tells."""
    name = path.removesuffix(".gz")
    for ending, format in _ENDINGS.items():
        # TFRecord shards are commonly called NAME.tfrecord-00000-of-00008
        if name.endswith(ending) or f"{ending}-" in pathlib.PurePosixPath(name).name:
            return format
    raise BadInput(f"{path}: no ending of {', '.join(_ENDINGS)}; set the format of the source")


def _json_lines(path: str) -> Iterator[tuple[str, Row | Unreadable]]:
    number = 0
    with paths.open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                place = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except UnicodeDecodeError:
                    yield place, Unreadable("not UTF-8")
                except ValueError as error:
                    yield place, Unreadable(f"not JSON ({error})")
                except RecursionError:
                    yield place, Unreadable("nested too deep")
                else:
                    yield place, row if isinstance(row, dict) else Unreadable("not a JSON object")
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path, number + 1, error) from None


def _parquet(path: str) -> Iterator[tuple[str, Row | Unreadable]]:
    with paths.open_bytes(path) as file:
        for number, row in enumerate(parquet_rows(file, path), start=1):
            yield f"{path}:{number}", row


def _tfrecord(path: str) -> Iterator[tuple[str, Row | Unreadable]]:
    import tensorflow as tf

    records = tf.data.TFRecordDataset(path, compression_type="GZIP" if path.endswith(".gz") else "")
    try:
        for number, record in enumerate(records.as_numpy_iterator(), start=1):
            place = f"{path}:{number}"
            try:
                example = tf.train.Example.FromString(record)
            except ValueError:  # protobuf's DecodeError
                yield place, Unreadable("no tf.train.Example")
                continue
            row = {name: _values(feature) for name, feature in example.features.feature.items()}
            yield place, {name: value for name, value in row.items() if value is not None}
    except tf.errors.OpError as error:
        raise BadInput(f"{path}: no whole TFRecord file ({error.message})") from None


def _values(feature) -> Any:
    """A list of values; the value itself where there is one."""
    values = list(getattr(feature, feature.WhichOneof("kind") or "bytes_list").value)
    return values[0] if len(values) == 1 else values or None


def _tfds(path: str, shard: str) -> Iterator[tuple[str, Row | Unreadable]]:
    split, _, index = shard.removesuffix("shard]").partition("[")
    import tensorflow_datasets as tfds

    start = int(index)
    instruction = tfds.core.ReadInstruction(split, from_=start, to=start + 1, unit="shard")
    rows = tfds.as_numpy(_tfds_builder(path).as_dataset(split=instruction, shuffle_files=False))
    for number, row in enumerate(rows, start=1):
        yield f"{path} {shard}:{number}", {name: _plain(value) for name, value in row.items()}


def _tfds_builder(path: str):
    """A dataset by its folder (local or in a bucket), or by its name where it was prepared before."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise BadInput(f"{path}: TFDS needs tensorflow_datasets, which is not installed") from None
    try:
        if paths.is_url(path) or pathlib.Path(path).exists():
            return tfds.builder_from_directory(path)
        return tfds.builder(path)
    except (tfds.core.registered.DatasetNotFoundError, FileNotFoundError) as error:
        raise BadInput(f"{path}: no TFDS dataset ({str(error).splitlines()[0]})") from None


def _plain(value: Any) -> Any:
    """TFDS' arrays as lists and scalars of Python."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _beir(folder: str, split: str) -> Iterator[tuple[str, Row | Unreadable]]:
    """A row a document (passages of one parent are its chunks in order), with the queries that they answer.

    A document without queries has an empty list of them.
    """
    from pplx_jax.data.io.beir import read_beir

    found = read_beir(folder, split)
    place = {name: row for row, name in enumerate(found.document_ids)}
    members: dict[str, list[int]] = {}
    for row, parent in enumerate(found.parents):
        members.setdefault(parent, []).append(row)
    queries: dict[str, list[tuple[str, int]]] = {}
    for name, text in zip(found.query_ids, found.queries, strict=True):
        for answer, grade in found.qrels[name].items():
            if grade > 0:
                queries.setdefault(found.parents[place[answer]], []).append((text, place[answer]))
    for number, (parent, passages) in enumerate(members.items(), start=1):
        passages = sorted(passages, key=lambda row: found.chunks[row])
        chunk_of = {row: chunk for chunk, row in enumerate(passages)}
        asked: Sequence[tuple[str, int]] = queries.get(parent, ())
        yield (
            f"{folder}:{number}",
            {
                "document_id": parent,
                "chunks": [found.documents[row] for row in passages],
                "queries": [{"text": text, "chunk": chunk_of[row]} for text, row in asked],
            },
        )
