"""Reads rows of JSON lines, Parquet, TFRecord, TFDS, SeqIO and BEIR folders, with the place of each row.

A row that cannot be read at all is returned as `Unreadable`, and reading continues after it. Texts are bytes or str;
whoever needs a text decodes it, and so finds the ones that are not UTF-8.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import storage
from pplx_jax.data.io.beir import read_beir
from pplx_jax.data.io.json_lines import parse_object
from pplx_jax.data.io.parquet import damaged, parquet_rows
from pplx_jax.data.sources.quiet_tensorflow import first_line, start_tensorflow
from pplx_jax.data.sources.seqio_rows import list_task_shards, task_rows

Format = Literal["auto", "jsonl", "parquet", "tfrecord", "tfds", "beir", "seqio"]
Row = dict[str, Any]

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".tfrecord": "tfrecord"}


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A row that cannot be read, and why."""

    reason: str


def list_shards(path: str, format: Format, split: str) -> list[str]:
    """Returns the parts that can be read separately: files, shards of a split of TFDS or SeqIO, or BEIR folders.

    Raises:
        BadInput: there are none.
    """
    if format == "tfds":
        return [f"{split}[{shard}shard]" for shard in range(_tfds_builder(path).info.splits[split].num_shards)]
    if format == "seqio":
        return list_task_shards(path, split)
    return storage.expand(path)


def read_rows(
    path: str, shard: str, format: Format, split: str, columns: Collection[str] | None = None
) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yields ("FILE:LINE", row) of one shard, in order. A row of Parquet, TFRecord or TFDS counts as a line.

    Args:
        path: the path of the source.
        shard: one of `list_shards`.
        format: the format of the shard; "auto" chooses by the ending of its name.
        split: the split of TFDS and BEIR.
        columns: of Parquet, the columns to read, as in `parquet_rows`; None for all.

    Raises:
        BadInput: the shard cannot be opened or is damaged, or needs a package that is not installed.
    """
    match format_of(shard) if format == "auto" else format:
        case "jsonl":
            yield from _json_lines(shard)
        case "parquet":
            yield from _parquet(shard, columns)
        case "tfrecord":
            yield from _tfrecord(shard)
        case "tfds":
            yield from _tfds(path, shard)
        case "beir":
            yield from _beir(shard, split)
        case "seqio":
            yield from task_rows(path, shard)


def format_of(path: str) -> str:
    """Returns the format that the name of a file implies.

    Raises:
        BadInput: the name has no known ending.
    """
    name = path.removesuffix(".gz")
    for ending, format in _ENDINGS.items():
        # TFRecord shards are commonly named NAME.tfrecord-00000-of-00008
        if name.endswith(ending) or f"{ending}-" in pathlib.PurePosixPath(name).name:
            return format
    raise BadInput(f"{path}: does not end in {', '.join(_ENDINGS)}; set the format of the source")


def _json_lines(path: str) -> Iterator[tuple[str, Row | Unreadable]]:
    number = 0
    with storage.open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row: Row | Unreadable = parse_object(line)
                except ValueError as error:
                    row = Unreadable(str(error))
                yield f"{path}:{number}", row
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path, number + 1, error) from None


def _parquet(path: str, columns: Collection[str] | None) -> Iterator[tuple[str, Row | Unreadable]]:
    with storage.open_bytes(path) as file:
        for number, row in enumerate(parquet_rows(file, path, columns), start=1):
            yield f"{path}:{number}", row


def _tfrecord(path: str) -> Iterator[tuple[str, Row | Unreadable]]:
    start_tensorflow()
    import tensorflow as tf

    records = tf.data.TFRecordDataset(path, compression_type="GZIP" if path.endswith(".gz") else "")
    try:
        for number, record in enumerate(records.as_numpy_iterator(), start=1):
            place = f"{path}:{number}"
            try:
                example = tf.train.Example.FromString(record)
            except ValueError:  # protobuf's DecodeError
                yield place, Unreadable("not a tf.train.Example")
                continue
            row = {name: _values(feature) for name, feature in example.features.feature.items()}
            yield place, {name: value for name, value in row.items() if value is not None}
    except tf.errors.OpError as error:
        raise BadInput(f"{path}: not a complete TFRecord file ({first_line(error)}); copy the file again") from None


def _values(feature) -> Any:
    """Returns the list of values, or the value itself if there is only one."""
    values = list(getattr(feature, feature.WhichOneof("kind") or "bytes_list").value)
    return values[0] if len(values) == 1 else values or None


def _tfds(path: str, shard: str) -> Iterator[tuple[str, Row | Unreadable]]:
    split, _, index = shard.removesuffix("shard]").partition("[")
    import tensorflow_datasets as tfds

    start = int(index)
    instruction = tfds.core.ReadInstruction(split, from_=start, to=start + 1, unit="shard")
    import tensorflow as tf

    rows = tfds.as_numpy(_tfds_builder(path).as_dataset(split=instruction, shuffle_files=False))
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{path} {shard}:{number}", {name: _plain(value) for name, value in row.items()}
    except tf.errors.OpError as error:
        place = f"{path} {shard}:{number + 1}"
        raise BadInput(f"{place}: cannot be read from here on ({first_line(error)}); prepare it again") from None


def _tfds_builder(path: str):
    """Opens a dataset by its folder (local or in a bucket), or by its name if it was prepared before."""
    try:
        start_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError:
        raise BadInput(f"{path}: TFDS needs tensorflow_datasets, which is not installed; pip install it") from None
    try:
        if storage.is_url(path) or pathlib.Path(path).exists():
            return tfds.builder_from_directory(path)
        return tfds.builder(path)
    except (tfds.core.registered.DatasetNotFoundError, FileNotFoundError) as error:
        raise BadInput(f"{path}: not a TFDS dataset ({str(error).splitlines()[0]}); check the path") from None


def _plain(value: Any) -> Any:
    """Returns arrays of TFDS as Python lists and scalars."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _beir(folder: str, split: str) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yields one row per document, with its passages as chunks in order and the queries that they answer."""
    found = read_beir(folder, split)
    place = {name: row for row, name in enumerate(found.document_ids)}
    members: dict[str, list[int]] = {}
    for row, parent in enumerate(found.parents):
        members.setdefault(parent, []).append(row)
    queries: dict[str, list[tuple[str, int]]] = {}
    for name, text in zip(found.query_ids, found.queries, strict=True):
        for answer, grade in found.qrels[name].items():
            if grade > 0 and answer in place:
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
