"""Makes token tables from tokenised blocks. Texts are cut to their limits; cuts and omissions are counted."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import PathLike
from pplx_jax.data.tokens.token_writer import TokenWriter
from pplx_jax.data.tokens.vocabulary import Vocabulary

Block = dict[str, Any]  # columns of several examples; `data.sources.blocks` describes them

MIN_TOKENS = 16  # of a piece of raw text


@contextlib.contextmanager
def table_maker(
    folder: PathLike,
    kind: str,
    vocabulary: Vocabulary,
    lengths: Lengths,
    *,
    min_tokens: int = MIN_TOKENS,
    allow_empty: bool = False,
) -> Iterator[TableMaker]:
    """Yields a `TableMaker` for blocks of one kind. The table is complete when the `with` block succeeds.

    Args:
        folder: the folder of the table.
        kind: the kind of the blocks.
        vocabulary: the vocabulary that tokenised them.
        lengths: the limits that texts are cut to.
        min_tokens: shorter pieces of raw text are left out.
        allow_empty: whether a table may have no example, as one shard of many may.

    Raises:
        BadInput: no example is left.
    """
    with TokenWriter(folder, kind, vocabulary) as writer:
        maker = _MAKERS[kind](writer, lengths, min_tokens)
        yield maker
        maker.finish()
        if not maker.examples and not allow_empty:
            raise BadInput(f"{folder}: no example is left to tokenise; give a larger corpus or lower the least length")


class TableMaker:
    """Turns blocks into rows of a table; one subclass per kind.

    The manifest has the number of texts that were cut (`truncated`), of tokens that were cut (`cut_tokens`), of
    examples that were left out because a text has no token (`empty`), the names that `source` refers to (`sources`),
    and the number of examples by language (`languages`).

    Attributes:
        examples: number of examples so far.
        limits: text feature -> its maximum number of tokens.
    """

    limits: Mapping[str, int]

    def __init__(self, writer: TokenWriter, lengths: Lengths, min_tokens: int = MIN_TOKENS):
        self.examples = 0
        self._writer, self._lengths, self._min_tokens = writer, lengths, min_tokens
        self._truncated, self._cut_tokens = collections.Counter(), collections.Counter()
        self._languages: collections.Counter[str] = collections.Counter()
        self._sources: dict[str, int] = {}
        self._empty = 0
        self.limits = self._limits(lengths)

    def add(self, block: Block) -> None:
        """Adds the examples of a block, whose text columns are `Ragged` and whose other columns are arrays."""
        raise NotImplementedError

    def note(self, **notes: Any) -> None:
        """Adds entries to the manifest."""
        self._writer.notes.update(notes)

    def finish(self) -> None:
        """Writes what is known only at the end, such as the notes of the manifest."""
        self._writer.notes.update(
            lengths=dict(self.limits),
            truncated={name: self._truncated[name] for name in self.limits},
            cut_tokens={name: self._cut_tokens[name] for name in self.limits},
            empty=self._empty,
            sources=list(self._sources),
            languages=dict(sorted(self._languages.items())),
        )

    def _limits(self, lengths: Lengths) -> dict[str, int]:
        raise NotImplementedError

    def _cut(self, name: str, texts: Ragged) -> Ragged:
        longest = self.limits[name]
        over = np.maximum(texts.lengths() - longest, 0)
        if not over.any():
            return texts
        place = np.arange(len(texts.values)) - np.repeat(texts.offsets[:-1], texts.lengths())
        self._truncated[name] += int((over > 0).sum())
        self._cut_tokens[name] += int(over.sum())
        return Ragged.from_lengths(texts.values[place < longest], texts.lengths() - over)

    def _label(self, block: Block, keep: np.ndarray) -> np.ndarray:
        """Counts the languages of the examples to keep, and returns the numbers of their sources, int32."""
        self._empty += int((~keep).sum())
        self._languages.update(str(name) for name in block["language"][keep])
        self.examples += int(keep.sum())
        names = [str(name) for name in block["source"][keep]]
        return np.array([self._sources.setdefault(name, len(self._sources)) for name in names], np.int32)

    def _append_pairs(self, query: Ragged, document: Ragged, keep: np.ndarray, block: Block) -> None:
        document = select(document, keep)
        self._writer.append(
            query=select(query, keep),
            document=document,
            document_hash=token_hashes(document),
            source=self._label(block, keep),
        )


class _Texts(TableMaker):
    """Raw text: rows of `Lengths.text` tokens. Texts follow one another, and a text that does not fit continues in the
    next row. `text_lengths` has the length of each text of a row.

    A piece of a text with fewer than `min_tokens` tokens (a short text, or the rest of a long one) is left out; the
    manifest counts these under `too_short`. A row with less free space than that is complete.
    """

    def __init__(self, writer: TokenWriter, lengths: Lengths, min_tokens: int = MIN_TOKENS):
        super().__init__(writer, lengths, min_tokens)
        self._too_short = collections.Counter(texts=0, tokens=0)
        self._row: list[np.ndarray] = []
        none = Ragged.from_arrays([])
        self._writer.append(tokens=none, text_lengths=none)

    def _limits(self, lengths: Lengths) -> dict[str, int]:
        return {}

    def add(self, block: Block) -> None:
        rows: list[list[np.ndarray]] = []
        room = self._lengths.text - sum(map(len, self._row))
        for text in block["tokens"]:
            while len(text) >= self._min_tokens:
                if room < self._min_tokens:
                    rows.append(self._row)
                    self._row, room = [], self._lengths.text
                self._row.append(text[:room])
                room, text = room - len(self._row[-1]), text[room:]
            if len(text):
                self._too_short.update(texts=1, tokens=len(text))
        self._languages.update(str(name) for name in block["language"][block["tokens"].lengths() > 0])
        self._empty += int((block["tokens"].lengths() == 0).sum())
        self._write(rows)

    def finish(self) -> None:
        if self._row:
            self._write([self._row])
        super().finish()
        notes = {"length": self._lengths.text, "min_tokens": self._min_tokens, "too_short": dict(self._too_short)}
        self._writer.notes.update(notes)

    def _write(self, rows: list[list[np.ndarray]]) -> None:
        lengths = [[len(text) for text in row] for row in rows]
        tokens = Ragged.from_arrays([np.concatenate(row) for row in rows])
        self._writer.append(tokens=tokens, text_lengths=Ragged.from_arrays(lengths))
        self.examples += len(rows)


class _Pairs(TableMaker):
    """One row per pair."""

    def __init__(self, writer: TokenWriter, lengths: Lengths, min_tokens: int = MIN_TOKENS):
        super().__init__(writer, lengths, min_tokens)
        none, number = Ragged.from_arrays([]), np.zeros(0, np.int32)
        self._writer.append(query=none, document=none, document_hash=number, source=number)

    def _limits(self, lengths: Lengths) -> dict[str, int]:
        return {"query": lengths.query, "document": lengths.document}

    def add(self, block: Block) -> None:
        query, document = self._cut("query", block["query"]), self._cut("document", block["document"])
        self._append_pairs(query, document, (query.lengths() > 0) & (document.lengths() > 0), block)


class _Triplets(TableMaker):
    """One row per triplet, then one row per negative. `negatives` [examples, K] refers to these rows.

    A text that is a negative of several queries has a row for each. Required features that only examples have are
    padded. `scores` [examples, 1 + K] float32 has the teacher's scores of the positive and the negatives, if there are
    any.
    """

    def __init__(self, writer: TokenWriter, lengths: Lengths, min_tokens: int = MIN_TOKENS):
        super().__init__(writer, lengths, min_tokens)
        self._negatives: list[Ragged] = []
        self._per_example = 0
        none, number = Ragged.from_arrays([]), np.zeros(0, np.int32)
        self._writer.append(query=none, document=none, document_hash=number, source=number)

    def _limits(self, lengths: Lengths) -> dict[str, int]:
        return dict.fromkeys(("query", "document", "negatives"), lengths.document) | {"query": lengths.query}

    def add(self, block: Block) -> None:
        query, document = self._cut("query", block["query"]), self._cut("document", block["document"])
        negatives = self._cut("negatives", block["negatives"])
        if not len(query):  # a block with bad rows only
            return
        self._per_example = len(negatives) // len(query)
        whole = (negatives.lengths() > 0).reshape(len(query), -1).all(axis=1)
        keep = (query.lengths() > 0) & (document.lengths() > 0) & whole
        self._negatives.append(select(negatives, np.repeat(keep, self._per_example)))
        if "scores" in block:
            scores = np.asarray(block["scores"], np.float32).reshape(len(query), 1 + self._per_example)
            self._writer.append(scores=scores[keep])
        self._append_pairs(query, document, keep, block)

    def finish(self) -> None:
        super().finish()
        count, each = self.examples, self._per_example
        extra = count * each
        for texts in self._negatives:
            blank = np.zeros(len(texts), np.int32)
            empty = Ragged.from_lengths(np.zeros(0, np.int32), blank)
            self._writer.append(query=empty, document=texts, document_hash=token_hashes(texts), source=blank)
        places = count + np.arange(extra, dtype=np.int32).reshape(count, each)
        self._writer.append(negatives=np.concatenate([places, np.zeros((extra, each), np.int32)]))
        self._writer.notes.update(examples=count)


class _Documents(TableMaker):
    """One row per query, with chunks and documents as side features. The manifest counts `documents` too.

    `also_positive` has the indices of the other chunks of the document that answer the query: the gold chunks of copies
    of the query, and copies of any of these chunks.
    """

    def __init__(self, writer: TokenWriter, lengths: Lengths, min_tokens: int = MIN_TOKENS):
        super().__init__(writer, lengths, min_tokens)
        self._counts: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._documents = 0
        none, number = Ragged.from_arrays([]), np.zeros(0, np.int32)
        labels = dict.fromkeys(("document", "chunk", "document_hash", "source"), number)
        self._writer.append(chunks=none, query=none, also_positive=none, **labels)

    def _limits(self, lengths: Lengths) -> dict[str, int]:
        return {"query": lengths.query, "chunks": lengths.chunk}

    def add(self, block: Block) -> None:
        query, chunks = self._cut("query", block["query"]), self._cut("chunks", block["chunks"])
        keep = query.lengths() > 0
        query, document, chunk = select(query, keep), block["document"][keep], block["chunk"][keep]
        counts = block["chunk_counts"].astype(np.int64)
        texts = Ragged(chunks.values, chunks.offsets[np.concatenate([[0], np.cumsum(counts)])])  # whole documents
        self._writer.append(
            chunks=chunks,
            query=query,
            also_positive=_also_positive(query, document, chunk, Ragged.from_lengths(token_hashes(chunks), counts)),
            document=document + np.int32(self._documents),
            chunk=chunk,
            document_hash=token_hashes(texts)[document],
            source=self._label(block, keep),
        )
        self._counts.append(counts)
        self._documents += len(counts)

    def finish(self) -> None:
        super().finish()
        self._writer.append(chunks_of_document=np.cumsum(np.concatenate(self._counts)))
        self._writer.notes.update(documents=self._documents, max_chunks=self._lengths.chunks)


def _also_positive(query: Ragged, document: np.ndarray, chunk: np.ndarray, chunk_hash: Ragged) -> Ragged:
    """Returns the indices of the other chunks that answer each of Q queries; `chunk_hash` is by document."""
    asked = list(zip(document.tolist(), token_hashes(query).tolist(), strict=True))
    answers = collections.defaultdict(set)
    for key, gold in zip(asked, chunk, strict=True):
        answers[key].add(chunk_hash[key[0]][gold])
    return Ragged.from_arrays(
        [place for place, found in enumerate(chunk_hash[key[0]]) if found in answers[key] and place != gold]
        for key, gold in zip(asked, chunk, strict=True)
    )


_MAKERS = {"text": _Texts, "pair": _Pairs, "triplet": _Triplets, "contextual": _Documents}


def select(texts: Ragged, keep: np.ndarray) -> Ragged:
    """Returns the arrays for which `keep` [n] is true."""
    lengths = texts.lengths()
    return Ragged.from_lengths(texts.values[np.repeat(keep, lengths)], lengths[keep])
