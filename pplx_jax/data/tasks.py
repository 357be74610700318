"""SeqIO tasks over the corpus files, and the token tables made from them; the one module with TensorFlow.

One example of these tasks is a *block* of records: text features are ragged [block, tokens], other features
[block]. That is several times faster than record by record; `task.get_dataset(...).unbatch()` gives single
records. Tasks are not registered, and know no lengths: texts are cut where a table is written, which counts
what it cuts. Training reads the tables alone and never comes here.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_jax.data import corpus_files
from pplx_jax.data.corpus_files import Corpus, PathLike
from pplx_jax.data.token_files import Ragged, TokenTable, TokenWriter
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.errors import BadInput
from pplx_jax.quiet import silent_native_stderr

if TYPE_CHECKING:
    import seqio

SPLIT = "train"

Block = dict[str, Any]


def corpus_task(corpus: Corpus, vocabulary: Vocabulary) -> seqio.Task:
    """The SeqIO task that tokenises the text fields of a corpus; its examples are blocks of records."""
    import seqio
    import tensorflow as tf

    types = {**dict.fromkeys(corpus.texts, "string"), **corpus.columns}
    signature = {name: tf.TensorSpec([None], tf.as_dtype(kind)) for name, kind in types.items()}
    pieces = seqio_vocabulary(vocabulary)

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed  # one split, one file, in its order
        return tf.data.Dataset.from_generator(corpus.blocks, output_signature=signature)

    def tokenize(dataset, output_features):
        encode = functools.partial(
            seqio.preprocessors.tokenize_impl, output_features=output_features, copy_pretokenized=False
        )
        return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)

    return seqio.Task(
        f"pplx_jax.{corpus.name}",
        seqio.FunctionDataSource(dataset, splits=[SPLIT]),
        output_features={name: seqio.Feature(pieces, add_eos=False, rank=2) for name in corpus.texts},
        preprocessors=[tokenize],
    )


def tokenized_blocks(corpus: Corpus, vocabulary: Vocabulary) -> Iterator[Block]:
    """Blocks that the corpus' task gives, in file order: texts as `Ragged`, other fields as arrays.

    Raises:
        BadInput: a record is malformed.
    """
    with silent_native_stderr():
        import tensorflow as tf

        tf.constant(0)  # starts the runtime, which greets once more

    try:
        for features in corpus_task(corpus, vocabulary).get_dataset(split=SPLIT, shuffle=False):
            texts = {
                name: Ragged(features[name].values.numpy(), features[name].row_splits.numpy()) for name in corpus.texts
            }
            yield texts | {name: features[name].numpy() for name in corpus.columns}
    except tf.errors.OpError:
        collections.deque(corpus.records(), maxlen=0)  # raises a record's own error, unwrapped
        raise


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


def tokenize_text(
    path: PathLike, vocabulary: Vocabulary, folder: PathLike, *, length: int, min_tokens: int = 16
) -> dict[str, Any]:
    """Writes the diffusion table of `text.jsonl`: every text split in windows of `length` tokens.

    Windows shorter than `min_tokens` (short texts, and the rests of long ones) are left out; the manifest
    counts them and their tokens under `too_short`.

    Returns:
        The manifest of the table.

    Raises:
        BadInput: a line is malformed; no window is left.
    """
    too_short = collections.Counter(texts=0, tokens=0)
    with TokenWriter(folder, "diffusion", vocabulary) as writer:
        for block in tokenized_blocks(corpus_files.text_corpus(path), vocabulary):
            windows = split_windows(block["tokens"], length)
            short = windows.lengths() < min_tokens
            too_short.update(texts=int(short.sum()), tokens=int(windows.lengths()[short].sum()))
            writer.append(tokens=_select(windows, ~short))
        _require_rows(writer, "tokens", path)
        writer.notes.update(length=length, min_tokens=min_tokens, too_short=dict(too_short))
    return dict(TokenTable.open(folder).manifest)


def tokenize_pairs(
    path: PathLike, vocabulary: Vocabulary, folder: PathLike, *, query_length: int, document_length: int
) -> dict[str, Any]:
    """Writes the pair table of `pairs.jsonl`, queries and documents cut to their lengths.

    The manifest counts the texts cut (`truncated`), the tokens lost (`cut_tokens`) and the pairs left out
    because a side has no token (`empty`), and lists the names that `source` counts (`sources`).

    Returns:
        The manifest of the table.

    Raises:
        BadInput: a line is malformed; no pair is left.
    """
    lengths = {"query": query_length, "document": document_length}
    sources = _Sources()
    cuts = _Cuts(lengths)
    with TokenWriter(folder, "pair", vocabulary) as writer:
        for block in tokenized_blocks(corpus_files.pair_corpus(path), vocabulary):
            writer.append(**cuts.without_empty(cuts.cut(sources.number(block))))
        _require_rows(writer, "query", path)
        writer.notes.update(lengths=lengths, sources=sources.names, **cuts.notes())
    return dict(TokenTable.open(folder).manifest)


def tokenize_documents(
    path: PathLike,
    vocabulary: Vocabulary,
    folder: PathLike,
    *,
    query_length: int,
    chunk_length: int,
    max_chunks: int,
) -> dict[str, Any]:
    """Writes the contextual table of `documents.jsonl`, one row a query; chunks and queries are cut to their
    lengths.

    A document of more than `max_chunks` chunks becomes several documents, of nearly equal numbers of
    consecutive chunks, each with its own queries. Documents without a query are left out. The manifest counts
    `documents`, and `truncated`, `cut_tokens`, `empty` (queries without a token) and `sources` as in
    `tokenize_pairs`.

    Returns:
        The manifest of the table.

    Raises:
        BadInput: a line is malformed, a query names a chunk that its document lacks; no query is left.
    """
    lengths = {"query": query_length, "chunks": chunk_length}
    sources = _Sources()
    cuts = _Cuts(lengths)
    with TokenWriter(folder, "contextual", vocabulary) as writer:
        counts = np.zeros(0, np.int64)
        for block in tokenized_blocks(corpus_files.chunk_corpus(path, max_chunks), vocabulary):
            documents = block.pop("document")
            counts = np.pad(counts, (0, documents[-1] + 1 - len(counts)))
            np.add.at(counts, documents, 1)
            writer.append(**cuts.cut(block))
        writer.append(chunks_of_document=np.concatenate([[0], np.cumsum(counts)]))
        for block in tokenized_blocks(corpus_files.query_corpus(path, max_chunks), vocabulary):
            writer.append(**cuts.without_empty(cuts.cut(sources.number(block))))
        _require_rows(writer, "query", path)
        counted = {"max_chunks": max_chunks, "documents": len(counts), "sources": sources.names}
        writer.notes.update(lengths=lengths, **counted, **cuts.notes())
    return dict(TokenTable.open(folder).manifest)


def split_windows(texts: Ragged, length: int) -> Ragged:
    """Every text cut into windows of `length` values, the last one shorter; an empty text gives none."""
    windows = -(-texts.lengths() // length)
    place = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    starts = np.repeat(texts.offsets[:-1], windows) + place * length
    return Ragged(texts.values, np.append(starts, texts.offsets[-1]))


class _Sources:
    """Numbers the sources of examples in the order they are met."""

    def __init__(self):
        self._number: dict[bytes, int] = {}

    def number(self, block: Block) -> Block:
        numbers = [self._number.setdefault(name, len(self._number)) for name in block["source"]]
        return {**block, "source": np.array(numbers, np.int32)}

    @property
    def names(self) -> list[str]:
        return [name.decode() for name in self._number]


class _Cuts:
    """Cuts the texts of blocks to their lengths, drops examples that have no token, and counts both."""

    def __init__(self, lengths: Mapping[str, int]):
        self._lengths = lengths
        self._truncated = collections.Counter(dict.fromkeys(lengths, 0))
        self._cut_tokens = collections.Counter(dict.fromkeys(lengths, 0))
        self._empty = 0

    def cut(self, block: Block) -> Block:
        block = dict(block)
        for name in [name for name in self._lengths if name in block]:
            texts, longest = block[name], self._lengths[name]
            over = np.maximum(texts.lengths() - longest, 0)
            place = np.arange(len(texts.values)) - np.repeat(texts.offsets[:-1], texts.lengths())
            block[name] = Ragged.from_lengths(texts.values[place < longest], texts.lengths() - over)
            self._truncated[name] += int((over > 0).sum())
            self._cut_tokens[name] += int(over.sum())
        return block

    def without_empty(self, block: Block) -> Block:
        texts = [values for values in block.values() if isinstance(values, Ragged)]
        keep = np.all([values.lengths() > 0 for values in texts], axis=0)
        self._empty += int((~keep).sum())
        return {
            name: _select(values, keep) if isinstance(values, Ragged) else values[keep]
            for name, values in block.items()
        }

    def notes(self) -> dict[str, Any]:
        return {
            "truncated": dict(self._truncated),
            "cut_tokens": dict(self._cut_tokens),
            "empty": self._empty,
        }


def _select(texts: Ragged, keep: np.ndarray) -> Ragged:
    lengths = texts.lengths()
    return Ragged.from_lengths(texts.values[np.repeat(keep, lengths)], lengths[keep])


def _require_rows(writer: TokenWriter, name: str, path: PathLike) -> None:
    if not writer.rows(name):
        raise BadInput(f"{path}: no example is left to tokenise; give a larger corpus or lower the least length")
