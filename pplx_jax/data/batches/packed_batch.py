"""Assembles the packed batch of each stage from a token table and the indices of its examples (numpy only).

Every batch has `tokens`, `segment_ids` (0 = padding), `positions` (restart in every text) and `chunk_ids`
(pooling slot + 1 of the token within its sequence; 0 on padding and separators), int32 [B, L], and int32
references to its texts as (sequence, slot) pairs. All texts of a batch share its sequences. The shapes depend
only on the arguments, never on the texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches import packing
from pplx_jax.data.tokens.ragged import Ragged, ranges
from pplx_jax.data.tokens.token_table import TokenTable

_DRAWS = 32  # batches sampled for an estimate: the error of their mean is about a fifth of a batch's deviation


class PackedBatch(NamedTuple):
    """A batch and its packing metrics.

    Attributes:
        arrays: the model's inputs, all int32.
        metrics: `fill` (share of the cells that hold a token), `tokens` (number of tokens), `cut_tokens`
            (tokens that did not fit).
    """

    arrays: dict[str, np.ndarray]
    metrics: dict[str, float]


def padded(packed: PackedBatch, sequences: int, pad_id: int) -> PackedBatch:
    """Returns the batch with empty sequences added at its end, `sequences` in all."""
    missing = sequences - len(packed.arrays["tokens"])
    blank = {name: pad_id if name == "tokens" else 0 for name in ("tokens", "segment_ids", "positions", "chunk_ids")}
    more = {
        name: np.pad(packed.arrays[name], ((0, missing), (0, 0)), constant_values=value)
        for name, value in blank.items()
    }
    fill = packed.metrics["fill"] * (sequences - missing) / sequences
    return PackedBatch({**packed.arrays, **more}, {**packed.metrics, "fill": fill})


class Texts(NamedTuple):
    """Texts to pack: chunk rows of a ragged feature, and the number of chunks of each text (None: one)."""

    feature: Ragged
    chunks: np.ndarray
    counts: np.ndarray | None = None

    def chunk_lengths(self) -> np.ndarray:
        return self.feature.offsets[self.chunks + 1] - self.feature.offsets[self.chunks]

    def chunk_counts(self) -> np.ndarray:
        return np.ones(len(self.chunks), np.int64) if self.counts is None else self.counts


def text_batch(table: TokenTable, indices: np.ndarray, *, sequences: int, length: int) -> PackedBatch:
    """Packs examples of a diffusion table, as many per sequence as fit; each of their texts is a separate segment.

    Args:
        table: a table of stage diffusion.
        indices: [N] examples.
        sequences: B; length: L.
    """
    lengths, _ = _measure([Texts(table["tokens"], indices)])
    packed = packing.pack(lengths, rows=sequences, length=length, slots=length)
    first, texts = _texts_in(table, indices, packed.kept)
    text_example = np.repeat(np.arange(len(indices)), texts)
    begins = np.concatenate([first, packed.kept.sum(keepdims=True)])
    text_lengths = np.diff(begins)
    # Segments are numbered along each sequence.
    column = packed.column[text_example] + first - np.repeat(np.cumsum(packed.kept) - packed.kept, texts)
    order = np.lexsort((column, packed.row[text_example]))
    rank = np.arange(len(order)) - np.searchsorted(packed.row[text_example][order], packed.row[text_example][order])
    segment = np.empty(len(order), np.int64)
    segment[order] = rank + 1

    filled = ranges(packed.row * length + packed.column, packed.kept)
    arrays = {name: np.zeros(sequences * length, np.int32) for name in ("segment_ids", "positions", "chunk_ids")}
    arrays["tokens"] = np.full(sequences * length, table.pad_id, np.int32)
    arrays["tokens"][filled] = table["tokens"].values[ranges(table["tokens"].offsets[indices], packed.kept)]
    arrays["segment_ids"][filled] = arrays["chunk_ids"][filled] = np.repeat(segment, text_lengths)
    arrays["positions"][filled] = ranges(np.zeros_like(text_lengths), text_lengths)
    metrics = {"fill": len(filled) / (sequences * length), "tokens": len(filled), "cut_tokens": packed.cut_tokens}
    return PackedBatch({name: array.reshape(sequences, length) for name, array in arrays.items()}, metrics)


def _texts_in(table: TokenTable, indices: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where texts begin, counted over all kept tokens of all examples, and the number of texts per example."""
    starts = np.cumsum(kept) - kept
    if "text_lengths" not in table:
        return starts, np.ones(len(indices), np.int64)
    lengths = table["text_lengths"]
    counts = lengths.offsets[indices + 1] - lengths.offsets[indices]
    sizes = lengths.values[ranges(lengths.offsets[indices], counts)].astype(np.int64)
    within = np.cumsum(sizes) - sizes
    within -= np.repeat(within[np.cumsum(counts) - counts], counts)
    whole = within < np.repeat(kept, counts)  # False for texts cut off with the end of their example
    example = np.repeat(np.arange(len(indices)), counts)[whole]
    return (np.repeat(starts, counts) + within)[whole], np.bincount(example, minlength=len(indices))


def pair_batch(
    table: TokenTable, indices: np.ndarray, *, sequences: int, length: int, slots: int, first_sequence: int = 0
) -> PackedBatch:
    """Packs queries and their documents; adds `query` [N, 2], `document` [N, 2], `document_hash` [N].

    Args:
        table: a table of stage pair (or triplet, whose negatives are then ignored).
        indices: [N] examples.
        sequences: B; length: L; slots: S, texts of a sequence.
        first_sequence: index of this batch's first sequence in a larger batch, added to every reference.
    """
    shape = {"sequences": sequences, "length": length, "slots": slots, "first_sequence": first_sequence}
    arrays, (query, document), metrics = _pack_texts(table, pair_texts(table, indices), **shape)
    arrays |= {"query": query, "document": document, "document_hash": _int32(table["document_hash"][indices])}
    return PackedBatch(arrays, metrics)


def triplet_batch(
    table: TokenTable,
    indices: np.ndarray,
    *,
    sequences: int,
    length: int,
    slots: int,
    negatives: int | None = None,
    first_sequence: int = 0,
) -> PackedBatch:
    """Packs queries, documents and hard negatives; adds `negatives` [N, K, 2] to the arrays of `pair_batch`.

    A document that is the positive of one query and a negative of others is packed once, and they all refer to
    it.

    Args:
        table: a table of stage triplet.
        indices: [N] examples.
        sequences: B; length: L; slots: S, texts of a sequence.
        negatives: K, the first K negatives of each example; None takes all.
        first_sequence: as in `pair_batch`.

    Raises:
        BadInput: the table has fewer than K negatives.
    """
    shape = {"sequences": sequences, "length": length, "slots": slots, "first_sequence": first_sequence}
    texts = triplet_texts(table, indices, negatives)
    arrays, (query, unique_documents), metrics = _pack_texts(table, texts, **shape)
    wanted = np.concatenate([indices[:, None], table["negatives"][indices, :negatives]], axis=1)
    documents = unique_documents[np.searchsorted(texts[1].chunks, wanted)]
    arrays |= {"query": query, "document": documents[:, 0], "negatives": documents[:, 1:]}
    arrays["document_hash"] = _int32(table["document_hash"][indices])
    return PackedBatch(arrays, metrics)


def contextual_batch(
    table: TokenTable,
    indices: np.ndarray,
    *,
    sequences: int,
    length: int,
    slots: int,
    chunks: int,
    first_sequence: int = 0,
) -> PackedBatch:
    """Packs queries and whole documents; separators join the chunks of a document into one text.

    Adds `query` [N, 2], `chunks` [N, C, 2] ((-1, -1) if a document has fewer), `chunk` [N] (index of the gold
    chunk in its document), `document_hash` [N], and `also_positive` [N, C] bool, the document's other chunks
    that answer the query (all False if the table does not contain them). A document with several queries in the
    batch is packed once.

    Args:
        table: a table of stage contextual.
        indices: [N] examples.
        sequences: B; length: L; slots: S, chunks and queries of a sequence.
        chunks: C, most chunks of a document.
        first_sequence: as in `pair_batch`.

    Raises:
        BadInput: a document has more than C chunks.
    """
    shape = {"sequences": sequences, "length": length, "slots": slots, "first_sequence": first_sequence}
    texts = contextual_texts(table, indices)
    counts = texts[1].chunk_counts()
    if counts.max() > chunks:
        raise BadInput(
            f"{table.folder}: a document of {counts.max()} chunks in a batch of {chunks}; "
            "raise the chunks of the stage or tokenise with a lower max_chunks"
        )
    arrays, (query, chunk_references), metrics = _pack_texts(table, texts, **shape)
    references = np.full((len(counts), chunks, 2), -1, np.int32)
    references[np.arange(chunks) < counts[:, None]] = chunk_references
    document_of = np.unique(table["document"][indices], return_inverse=True)[1]
    arrays |= {
        "query": query,
        "chunks": references[document_of],
        "chunk": _int32(table["chunk"][indices]),
        "document_hash": _int32(table["document_hash"][indices]),
    }
    arrays["also_positive"] = np.zeros((len(indices), chunks), bool)
    if "also_positive" in table:  # optional, but the batches of all hosts have the same arrays
        for own, index in zip(arrays["also_positive"], indices, strict=True):
            own[table["also_positive"][index]] = True
    return PackedBatch(arrays, metrics)


def sequences_needed(
    table: TokenTable,
    texts: Callable[[TokenTable, np.ndarray], list[Texts]],
    examples: int,
    length: int,
    *,
    slots: int | None = None,
    deviations: float = 0.5,
    multiple_of: int = 1,
) -> int:
    """Returns the number of sequences for batches of `examples`: the mean batch and `deviations` standard deviations.

    Found by packing sampled batches (always the same ones), so it includes what packing wastes. With half a
    deviation a batch of hundreds of texts fills about 98% of its cells. One batch in four is a little too large: its
    longest texts are cut, a few tokens in a thousand overall.

    Args:
        table: the table that the stage reads.
        texts: (table, indices) -> the texts of these examples, such as `pair_texts`.
        examples: N of one batch.
        length: L.
        slots: S; None if sequences may hold any number of texts.
        deviations: margin above the mean.
        multiple_of: the result is a multiple of this.

    Raises:
        BadInput: the table has fewer examples than a batch.
    """
    used = [1 + packed.row.max() for packed in _sample(table, texts, examples, length, slots or length)]
    return math.ceil((np.mean(used) + deviations * np.std(used)) / multiple_of) * multiple_of


def pair_texts(table: TokenTable, indices: np.ndarray) -> list[Texts]:
    return [Texts(table["query"], indices), Texts(table["document"], indices)]


def triplet_texts(table: TokenTable, indices: np.ndarray, negatives: int | None = None) -> list[Texts]:
    available = table["negatives"].shape[1]
    if negatives is not None and negatives > available:
        raise BadInput(f"{table.folder}: {available} negatives an example, the stage wants {negatives}; mine more")
    wanted = np.concatenate([indices, table["negatives"][indices, :negatives].ravel()])
    return [Texts(table["query"], indices), Texts(table["document"], np.unique(wanted))]


def contextual_texts(table: TokenTable, indices: np.ndarray) -> list[Texts]:
    documents = np.unique(table["document"][indices])
    first = table["chunks_of_document"][documents]
    counts = table["chunks_of_document"][documents + 1] - first
    return [Texts(table["query"], indices), Texts(table["chunks"], ranges(first, counts), counts)]


def _sample(
    table: TokenTable,
    texts: Callable[[TokenTable, np.ndarray], list[Texts]],
    examples: int,
    length: int,
    slots: int,
) -> list[packing.Packing]:
    """Packs `_DRAWS` seeded batches with no bound on the sequences."""
    if examples > table.count:
        raise BadInput(f"{table.folder}: {table.count} examples, a batch wants {examples}; lower the batch size")
    generator = np.random.default_rng(0)
    packed = []
    for _ in range(_DRAWS if examples < table.count else 1):
        lengths, counts = _measure(texts(table, generator.choice(table.count, examples, replace=False)))
        packed.append(packing.pack(lengths, counts, rows=len(counts), length=length, slots=slots))
    return packed


def _pack_texts(
    table: TokenTable, texts: Sequence[Texts], *, sequences: int, length: int, slots: int, first_sequence: int = 0
) -> tuple[dict[str, np.ndarray], list[np.ndarray], dict[str, float]]:
    """Packs texts into sequences; also returns the (sequence, slot) of the chunks of each group: int32 [C, 2]."""
    lengths, counts = _measure(texts)
    packed = packing.pack(lengths, counts, rows=sequences, length=length, slots=slots)
    cells = packed.row * length + packed.column
    filled = ranges(cells, packed.kept)
    starts = np.concatenate([group.feature.offsets[group.chunks] for group in texts])
    arrays = {name: np.zeros(sequences * length, np.int32) for name in ("segment_ids", "positions", "chunk_ids")}
    arrays["tokens"] = np.full(sequences * length, table.pad_id, np.int32)
    arrays["segment_ids"][filled] = np.repeat(packed.segment, packed.kept)
    arrays["positions"][filled] = ranges(packed.position, packed.kept)
    arrays["chunk_ids"][filled] = np.repeat(packed.slot + 1, packed.kept)

    references, chunk, cell = [], 0, 0
    where = np.stack([packed.row + first_sequence, packed.slot], axis=1).astype(np.int32)
    for group in texts:
        own = slice(chunk, chunk + len(group.chunks))
        read = ranges(starts[own], packed.kept[own])
        arrays["tokens"][filled[cell : cell + len(read)]] = group.feature.values[read]
        references.append(where[own])
        chunk, cell = own.stop, cell + len(read)

    follows = packed.position > 0  # chunks that a separator joins to the previous one
    separators = cells[follows] - 1
    arrays["tokens"][separators] = table.separator_id
    arrays["segment_ids"][separators] = packed.segment[follows]
    arrays["positions"][separators] = packed.position[follows] - 1

    tokens = len(filled) + len(separators)
    metrics = {"fill": tokens / (sequences * length), "tokens": tokens, "cut_tokens": packed.cut_tokens}
    return {name: array.reshape(sequences, length) for name, array in arrays.items()}, references, metrics


def _measure(texts: Sequence[Texts]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of every chunk [C] and the chunks of every text [T], over all groups."""
    lengths = np.concatenate([group.chunk_lengths() for group in texts])
    return lengths, np.concatenate([group.chunk_counts() for group in texts])


def _int32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.int32)
