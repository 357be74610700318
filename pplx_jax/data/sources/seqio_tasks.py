"""SeqIO tasks and mixtures over declared sources, and the token tables made from them; the room of TensorFlow.

Up to the cache one example of a task is a *block* of records (`data.sources.blocks`), flat: a text feature is the token
ids of all its texts end to end, and NAME_lengths says where each ends. That is several times faster than record by
record. After it, what a SeqIO mixture reads, an example is one record. Tasks know no lengths: texts are cut where a
table is written, which counts what it cuts. Training reads the tables alone and never comes here.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import silent_native_stderr
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources.blocks import Block
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.data.sources.source import Source, weighted_parts
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.table_maker import MIN_TOKENS, table_maker
from pplx_jax.data.tokens.token_table import PathLike, TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import seqio

SPLIT = "train"
LENGTHS = "_lengths"

Drop = Callable[[str], bool]


def start_tensorflow() -> None:
    """Imports TensorFlow and starts its runtime without the page of greetings."""
    with silent_native_stderr():
        import tensorflow as tf

        tf.constant(0)  # starts the runtime, which greets once more


def source_task(
    source: Source,
    vocabulary: Vocabulary,
    *,
    shards: Sequence[str] | None = None,
    bad: BadRows | None = None,
    max_chunks: int = 0,
    drop: Drop | None = None,
) -> seqio.Task:
    """The SeqIO task that reads and tokenises a source. It is not registered; `register` does that.

    Args:
        source: of one part (see `Source.parts`).
        vocabulary: gives the ids.
        shards: of the source, where they are known.
        bad: counts the rows read; a fresh count a dataset where None.
        max_chunks, drop: as in `Source.examples`.

    Raises:
        BadInput: the source has no files.
    """
    import seqio
    import tensorflow as tf

    files = source.shards() if shards is None else shards
    texts = blocks.TEXTS[source.kind]
    types = {**dict.fromkeys(texts, "string"), **blocks.COLUMNS[source.kind], **blocks.ROW_COUNTS}
    signature = {name: tf.TensorSpec([None], tf.as_dtype(kind)) for name, kind in types.items()}
    pieces = seqio_vocabulary(vocabulary)
    features = {name: seqio.Feature(pieces, add_eos=False, rank=_rank(source.kind, name)) for name in texts}

    class Shards(seqio.DataSource):
        """The files of the source."""

        def __init__(self):
            super().__init__(splits=[SPLIT])

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> Sequence[str]:
            return files

        def get_dataset(self, split=SPLIT, shuffle=True, seed=None, shard_info=None, **_):
            del split, shuffle, seed  # one split in its order; token tables are shuffled where they are read
            own = files[shard_info.index :: shard_info.num_shards] if shard_info else files
            count = bad or BadRows(source.name, source.max_bad_share)

            def generate() -> Iterator[Block]:
                try:
                    read = (source.examples(shard, count, max_chunks=max_chunks, drop=drop) for shard in own)
                    yield from blocks.blocks(source.kind, itertools.chain.from_iterable(read), count)
                except BaseException as error:
                    count.failure = error  # TensorFlow hands on its text only
                    raise

            return tf.data.Dataset.from_generator(generate, output_signature=signature)

    def tokenize(dataset, output_features):
        def encode(block):
            block = seqio.preprocessors.tokenize_impl(block, output_features=output_features, copy_pretokenized=False)
            flat = {name: block[name].flat_values for name in texts}
            return {**block, **flat, **{name + LENGTHS: block[name].row_lengths() for name in texts}}

        return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)

    return seqio.Task(
        task_name(source),
        Shards(),
        output_features=features,
        preprocessors=[tokenize, seqio.CacheDatasetPlaceholder(), functools.partial(_records, kind=source.kind)],
    )


def task_name(source: Source) -> str:
    """Its name in SeqIO's registry."""
    return "pplx_jax." + re.sub(r"\W", "_", f"{source.table_folder}.{source.name}", flags=re.ASCII)


def register(
    name: str,
    sources: Iterable[Source],
    vocabulary: Vocabulary,
    mixture: Mixture,
    *,
    max_chunks: int = 0,
    drop: Drop | None = None,
) -> seqio.Mixture:
    """Registers a task for every part of a source, and their mixture, with SeqIO; what had these names is replaced.

    Args:
        name: of the mixture.
        sources: of one kind.
        vocabulary: gives the ids.
        mixture: whose shares are the rates; it names its sources.
        max_chunks, drop: as in `Source.examples`.

    Returns:
        The mixture. Its examples are records: texts as token ids, `negatives` and `chunks` ragged.

    Raises:
        BadInput: a source has no files; the mixture names no source, or one that is not there.
    """
    import seqio

    if not mixture.weights:
        raise BadInput(f"Mixture.weights of {name}: name the sources; their sizes are not known before they are read")
    parts = {part.name: (part, weight) for part, weight in weighted_parts(sources)}
    shares = mixture.shares(dict.fromkeys(parts, 0), {name: weight for name, (_, weight) in parts.items()})
    rates = []
    for part, share in shares.items():
        task = source_task(parts[part][0], vocabulary, max_chunks=max_chunks, drop=drop)
        if task.name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(task.name)
        seqio.TaskRegistry.add_provider(task.name, task)
        rates.append((task.name, share))
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, rates)


def tokenized_blocks(
    source: Source,
    vocabulary: Vocabulary,
    bad: BadRows,
    *,
    shard: int | None = None,
    max_chunks: int = 0,
    drop: Drop | None = None,
) -> Iterator[Block]:
    """Blocks that the source's task gives, in order: texts as `Ragged`, other features as arrays.

    Args:
        source: of one part.
        vocabulary: gives the ids.
        bad: counts the rows read.
        shard: only this one of the source's shards.
        max_chunks, drop: as in `Source.examples`.

    Raises:
        BadInput: the source has no files, or too many bad rows.
    """
    start_tensorflow()
    import seqio
    import tensorflow as tf

    shards = source.shards()
    task = source_task(source, vocabulary, shards=shards, bad=bad, max_chunks=max_chunks, drop=drop)
    only = None if shard is None else seqio.ShardInfo(shard, len(shards))
    try:
        for features in task.preprocess_precache(task.source.get_dataset(SPLIT, shuffle=False, shard_info=only)):
            block = ragged_block(source.kind, {name: value.numpy() for name, value in features.items()})
            if len(block["language"]):
                yield block
    except tf.errors.OpError:
        if bad.failure is not None:
            raise bad.failure from None
        raise


def ragged_block(kind: str, flat: Mapping[str, np.ndarray]) -> Block:
    """A block of a task, flat as SeqIO has it, as the tables take it: texts `Ragged`, labels str."""
    block: Block = {
        name: Ragged.from_lengths(np.asarray(flat[name], np.int32), np.asarray(flat[name + LENGTHS], np.int64))
        for name in blocks.TEXTS[kind]
    }
    for name, type_ in {**blocks.COLUMNS[kind], **blocks.ROW_COUNTS}.items():
        if type_ == "string":
            block[name] = np.array([value.decode() for value in flat[name]], object)
        else:
            block[name] = np.asarray(flat[name], np.dtype(type_))
    return block


def tokenize_source(
    source: Source,
    vocabulary: Vocabulary,
    folder: PathLike,
    lengths: Lengths,
    *,
    weight: float = 1.0,
    min_tokens: int = MIN_TOKENS,
    drop: Drop | None = None,
) -> dict[str, Any]:
    """Writes the token table of a source: all its shards, one after another; `beam_cache` does it in parallel.

    The manifest says what `TableMaker` counts, under `rows` what was read (`BadRows.summary`), and the `weight` of the
    table among those of its source.

    Returns:
        The manifest of the table.

    Raises:
        BadInput: no file, too many bad rows, no example left.
    """
    bad = BadRows(source.name, source.max_bad_share)
    with table_maker(folder, source.kind, vocabulary, lengths, min_tokens=min_tokens) as maker:
        for block in tokenized_blocks(source, vocabulary, bad, max_chunks=lengths.chunks, drop=drop):
            maker.add(block)
        bad.finish()
        maker.note(rows=bad.summary(), weight=weight)
    return dict(TokenTable.open(folder).manifest)


def tokenize_sources(
    sources: Iterable[Source],
    vocabulary: Vocabulary,
    folder: pathlib.Path,
    lengths: Lengths,
    *,
    drop: Drop | None = None,
) -> dict[str, dict[str, int]]:
    """Writes FOLDER/STAGE/NAME for every part of every source, and returns {stage: {name: examples}}."""
    counts: dict[str, dict[str, int]] = {}
    for part, weight in weighted_parts(sources):
        table = folder / part.table_folder / part.name
        manifest = tokenize_source(part, vocabulary, table, lengths, weight=weight, drop=drop)
        counts.setdefault(part.table_folder, {})[part.name] = manifest.get("examples", manifest["count"])
    return counts


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """The vocabulary as SeqIO wants it, with the very ids of `vocabulary` inside tf.data too.

    TensorFlow Text carries another release of SentencePiece, which breaks ties between equally likely
    segmentations (of `########`, say) otherwise, so its operation would not give the ids that serving sees.
    """
    import seqio
    import tensorflow as tf

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = vocabulary.encode_batch([text.decode() for text in texts])
        lengths = np.array([len(text) for text in ids], np.int64)
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths

    class SameIds(seqio.Vocabulary):
        bos_id = eos_id = unk_id = None
        pad_id = vocabulary.pad_id
        _base_vocab_size = vocabulary.size

        def _encode(self, s: str) -> list[int]:
            return vocabulary.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return vocabulary.decode(ids)

        def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
            values, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], (tf.int32, tf.int64))
            values.set_shape([None])
            lengths.set_shape([None])
            if s.shape.rank == 0:
                return values
            return tf.RaggedTensor.from_row_lengths(values, lengths)  # type: ignore[attr-defined]

        def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(lambda ids: vocabulary.decode(ids).encode(), [ids], tf.string)

        def __eq__(self, other) -> bool:
            return isinstance(other, seqio.Vocabulary) and getattr(other, "fingerprint", None) == self.fingerprint

        fingerprint = vocabulary.fingerprint

    return SameIds()


def _rank(kind: str, name: str) -> int:
    return 2 if name in ("negatives", "chunks") else 1


def _records(dataset, kind: str):
    """Blocks to records: of the contextual kind one a query, with the chunks of its document."""
    import tensorflow as tf

    ragged: Any = tf.RaggedTensor

    def unblock(block):
        texts = {
            name: ragged.from_row_lengths(block[name], tf.cast(block[name + LENGTHS], tf.int64))
            for name in blocks.TEXTS[kind]
        }
        if kind == "triplet":
            queries = tf.maximum(tf.shape(texts["query"].row_lengths())[0], 1)
            each = tf.shape(texts["negatives"].row_lengths())[0] // queries
            texts["negatives"] = ragged.from_uniform_row_length(texts["negatives"], tf.cast(each, tf.int64))
        columns = {name: block[name] for name in blocks.COLUMNS[kind] if name not in ("chunk_counts", "negative_hash")}
        if kind == "contextual":
            counts = tf.cast(block["chunk_counts"], tf.int64)
            documents = ragged.from_row_lengths(texts["chunks"], counts)
            texts["chunks"] = tf.gather(documents, columns.pop("document"))
        return tf.data.Dataset.from_tensor_slices({**texts, **columns})

    return dataset.flat_map(unblock)
