"""SeqIO tasks and mixtures of declared sources, and the token tables made from them.

Before SeqIO's cache, one example of a task is a *block* of records (`data.sources.blocks`): a text feature has the
token ids of all its texts, concatenated, and NAME_lengths has the length of each text. This is several times faster
than single records. After the cache, an example is one record, which is what a SeqIO mixture reads. Tasks do not cut
texts; the writer of a table cuts and counts. TensorFlow is imported here only. Training reads the tables alone.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources.beam_failures import NO_MARKER, FailureMarker
from pplx_jax.data.sources.blocks import Block
from pplx_jax.data.sources.duplicates import Drop, Duplicates, Mode, find_duplicates
from pplx_jax.data.sources.example_reader import Example
from pplx_jax.data.sources.quiet_tensorflow import start_tensorflow
from pplx_jax.data.sources.seqio_vocabulary import seqio_vocabulary
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


def source_task(
    source: Source,
    vocabulary: Vocabulary | seqio.Vocabulary,
    *,
    name: str | None = None,
    shards: Sequence[str] | Callable[[], Sequence[str]] | None = None,
    bad: BadRows | None = None,
    max_chunks: int = 0,
    drop: Drop | None = None,
    duplicates: Duplicates | None = None,
    failure: FailureMarker = NO_MARKER,
) -> seqio.Task:
    """Returns the SeqIO task that reads and tokenises a source. `add_task` registers it.

    Args:
        source: a source of one part (see `Source.parts`).
        vocabulary: the vocabulary, or what `seqio_vocabulary` made of it.
        name: of the task; None for `task_name`.
        shards: the shards of the source, if they are known, or a function that lists them when they are read.
        bad: counts the rows. `bad.failure` is the error that ended the dataset early, if there was one. If None, each
            dataset has its own count and raises errors as TensorFlow does.
        max_chunks, drop: as in `Source.examples`.
        duplicates: the examples to leave out; None for none.
        failure: at which the dataset stops when another worker has failed.

    Raises:
        BadInput: the source has no files.
    """
    import seqio
    import tensorflow as tf

    if shards is None:
        shards = source.shards()
    files = functools.cache(shards if callable(shards) else lambda: shards)
    texts = blocks.TEXTS[source.kind]
    types = {**dict.fromkeys(texts, "string"), **blocks.columns_of(source), **blocks.ROW_COUNTS}
    signature = {name: tf.TensorSpec([None], tf.as_dtype(kind)) for name, kind in types.items()}
    pieces = seqio_vocabulary(vocabulary) if isinstance(vocabulary, Vocabulary) else vocabulary
    features = {name: seqio.Feature(pieces, add_eos=False, rank=_rank(source.kind, name)) for name in texts}

    class Shards(seqio.DataSource):
        """The files of the source."""

        def __init__(self):
            super().__init__(splits=[SPLIT])

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> Sequence[str]:
            return files()

        def get_dataset(self, split=SPLIT, shuffle=True, seed=None, shard_info=None, **_):
            del split, shuffle, seed  # token tables are shuffled when they are read
            own = files()[shard_info.index :: shard_info.num_shards] if shard_info else files()
            count = bad or BadRows(source.name, source.max_bad_share)

            def examples(shard: str) -> Iterator[Example]:
                repeated = duplicates.of_shard(source.name, shard) if duplicates else None
                return source.examples(shard, count, max_chunks=max_chunks, drop=drop, repeated=repeated)

            def generate() -> Iterator[Block]:
                try:
                    read = map(examples, own)
                    found = blocks.blocks(source, source.prompted(itertools.chain.from_iterable(read)), count)
                    yield from failure.watch(found)
                except Exception as error:
                    if bad is None:
                        raise
                    bad.failure = error  # TensorFlow would pass on its text only

            return tf.data.Dataset.from_generator(generate, output_signature=signature)

    def tokenize(dataset, output_features):
        def encode(block):
            block = seqio.preprocessors.tokenize_impl(block, output_features=output_features, copy_pretokenized=False)
            flat = {name: block[name].flat_values for name in texts}
            return {**block, **flat, **{name + LENGTHS: block[name].row_lengths() for name in texts}}

        return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)

    return seqio.Task(
        name or task_name(source),
        Shards(),
        output_features=features,
        preprocessors=[tokenize, seqio.CacheDatasetPlaceholder(), functools.partial(_records, source=source)],
    )


def task_name(source: Source) -> str:
    """Returns the name of the task of a source in SeqIO's registry."""
    return "pplx_jax." + valid_name(f"{source.table_folder}.{source.name}")


def valid_name(name: str) -> str:
    """Returns a name without characters that SeqIO refuses."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def add_task(task: seqio.Task) -> None:
    """Adds a task to SeqIO's registry. A former one of its name is replaced."""
    import seqio

    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)


def add_mixture(name: str, rates: Sequence[tuple[str, Any]]) -> seqio.Mixture:
    """Adds a mixture of registered tasks with these rates. A former one of its name is replaced."""
    import seqio

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
    duplicates: Duplicates | None = None,
) -> Iterator[Block]:
    """Yields the blocks of a source's task in order, with texts as `Ragged` and other columns as arrays.

    Args:
        source: a source of one part.
        vocabulary: the vocabulary.
        bad: counts the rows.
        shard: the number of the only shard to read; all if None.
        max_chunks, drop, duplicates: as in `source_task`.

    Raises:
        BadInput: the source has no files, or too many bad rows.
    """
    start_tensorflow()
    import seqio

    shards = source.shards()
    left_out = {"drop": drop, "duplicates": duplicates}
    task = source_task(source, vocabulary, shards=shards, bad=bad, max_chunks=max_chunks, **left_out)
    only = None if shard is None else seqio.ShardInfo(shard, len(shards))
    for features in task.preprocess_precache(task.source.get_dataset(SPLIT, shuffle=False, shard_info=only)):
        block = ragged_block(source, {name: value.numpy() for name, value in features.items()})
        if len(block["language"]):
            yield block
    if bad.failure is not None:
        raise bad.failure


def ragged_block(source: Source, flat: Mapping[str, np.ndarray]) -> Block:
    """Converts a block from SeqIO's flat form to the form of `TableMaker`: texts `Ragged`, labels str."""
    block: Block = {
        name: Ragged.from_lengths(np.asarray(flat[name], np.int32), np.asarray(flat[name + LENGTHS], np.int64))
        for name in blocks.TEXTS[source.kind]
    }
    for name, type_ in {**blocks.columns_of(source), **blocks.ROW_COUNTS}.items():
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
    duplicates: Duplicates | None = None,
) -> dict[str, Any]:
    """Writes the token table of a source, shard after shard. `beam_cache` does the same in parallel.

    The manifest has the counts of `TableMaker`, `rows` (`BadRows.summary`), and the `weight` of the table within its
    source.

    Returns:
        The manifest of the table.

    Raises:
        BadInput: there is no file, too many rows are bad, or no example is left.
    """
    bad = BadRows(source.name, source.max_bad_share)
    with table_maker(folder, source.kind, vocabulary, lengths, min_tokens=min_tokens) as maker:
        left_out = {"drop": drop, "duplicates": duplicates}
        for block in tokenized_blocks(source, vocabulary, bad, max_chunks=lengths.chunks, **left_out):
            maker.add(block)
        bad.finish()
        maker.note(rows=bad.summary(), weight=weight, **notes_of(source, duplicates.mode if duplicates else ""))
    return dict(TokenTable.open(folder).manifest)


def notes_of(source: Source, duplicates: Mode) -> dict[str, Any]:
    """Returns the entries of a manifest for the prompts in a table and the duplicates that were left out, if any."""
    prompts = {"prompts": source.prompts} if source.prompts else {}
    return prompts | ({"duplicates": duplicates} if duplicates else {})


def tokenize_sources(
    sources: Iterable[Source],
    vocabulary: Vocabulary,
    folder: pathlib.Path,
    lengths: Lengths,
    *,
    drop: Drop | None = None,
    duplicates: Mode = "",
) -> dict[str, dict[str, int]]:
    """Writes FOLDER/KIND/SOURCE for every part of every source, and returns {kind: {source: examples}}.

    Kinds are named by their folders (`data.tokens.kinds.FOLDERS`). With `duplicates`, all sources are read once before.
    """
    counts: dict[str, dict[str, int]] = {}
    parts = weighted_parts(sources)
    left_out = None
    if duplicates:
        found = find_duplicates([part for part, _ in parts], duplicates, drop)
        left_out = Duplicates(duplicates, lambda name, shard: found[name, shard])
    for part, weight in parts:
        table = folder / part.table_folder / part.name
        options = {"weight": weight, "drop": drop, "duplicates": left_out}
        manifest = tokenize_source(part, vocabulary, table, lengths, **options)
        counts.setdefault(part.table_folder, {})[part.name] = manifest.get("examples", manifest["count"])
    return counts


def _rank(kind: str, name: str) -> int:
    return 2 if name in ("negatives", "chunks") else 1


def _records(dataset, source: Source):
    """Converts blocks to records. A record of the contextual kind is one query with the chunks of its document."""
    import tensorflow as tf

    ragged: Any = tf.RaggedTensor

    def unblock(block):
        texts = {
            name: ragged.from_row_lengths(block[name], tf.cast(block[name + LENGTHS], tf.int64))
            for name in blocks.TEXTS[source.kind]
        }
        if source.kind == "triplet":
            queries = tf.maximum(tf.shape(texts["query"].row_lengths())[0], 1)
            each = tf.shape(texts["negatives"].row_lengths())[0] // queries
            texts["negatives"] = ragged.from_uniform_row_length(texts["negatives"], tf.cast(each, tf.int64))
        columns = {name: block[name] for name in blocks.columns_of(source) if name != "chunk_counts"}
        if source.has_scores:
            columns["scores"] = tf.reshape(columns["scores"], [-1, 1 + source.negatives])
        if source.kind == "contextual":
            counts = tf.cast(block["chunk_counts"], tf.int64)
            documents = ragged.from_row_lengths(texts["chunks"], counts)
            texts["chunks"] = tf.gather(documents, columns.pop("document"))
        return tf.data.Dataset.from_tensor_slices({**texts, **columns})

    return dataset.flat_map(unblock)
