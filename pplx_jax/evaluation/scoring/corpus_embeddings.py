"""The vectors of a corpus block after block: from the shards that `embed` left, or encoded here and kept in memory."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import json_lines as rows
from pplx_jax.evaluation.core.benchmark import TOO_LONG, System
from pplx_jax.inference.overflow import too_long_by_name
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder

_DOCUMENTS_PER_BLOCK = 16_384


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive documents.

    Attributes:
        ids: N ids.
        vectors: [M, width], M >= N: a document's chunks follow one another.
        starts: int64 [N], each document's first vector.
        empty: bool [M], vectors of empty texts, which are not like anything.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    starts: np.ndarray
    empty: np.ndarray

    def document_scores(self, scores: np.ndarray) -> np.ndarray:
        """From scores of vectors [Q, M] those of documents [Q, N]: a document is worth its best chunk."""
        scores = np.where(self.empty, np.float32(-np.inf), scores)
        return scores if len(self.ids) == len(self.empty) else np.maximum.reduceat(scores, self.starts, axis=1)

    def taken(self, documents: Sequence[int]) -> "Block":
        """Only the documents of these places."""
        ends = [*self.starts[1:], len(self.vectors)]
        chosen = [np.arange(self.starts[place], ends[place]) for place in documents]
        places = np.concatenate([np.empty(0, np.int64), *chosen])
        starts = np.cumsum([0, *map(len, chosen)])[: len(chosen)]
        return Block([self.ids[place] for place in documents], self.vectors[places], starts, self.empty[places])


def joined(blocks: Sequence[Block]) -> Block:
    """Blocks one after another as one."""
    offsets = np.cumsum([0, *(len(block.vectors) for block in blocks)])
    return Block(
        [identity for block in blocks for identity in block.ids],
        np.concatenate([block.vectors for block in blocks]),
        np.concatenate([block.starts + offset for block, offset in zip(blocks, offsets, strict=False)]),
        np.concatenate([block.empty for block in blocks]),
    )


class EncodedCorpus:
    """Texts encoded by the system's model; all their vectors are in memory."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], system: System):
        """Encodes N texts. Raises BadInput for one past the model's limit, unless it may be cut."""
        assert system.encoder is not None
        self._ids = ids
        with too_long_by_name(ids, TOO_LONG):
            pooled = system.encoder.encode(texts, **encoding(system))
        self._vectors = quantize(pooled, system.settings.quantization)
        self._empty = np.array([not text.strip() for text in texts])

    def ids(self) -> Iterator[str]:
        yield from self._ids

    def blocks(self) -> Iterator[Block]:
        for begin in range(0, len(self._ids), _DOCUMENTS_PER_BLOCK):
            part = slice(begin, begin + _DOCUMENTS_PER_BLOCK)
            ids = self._ids[part]
            yield Block(ids, self._vectors[part], np.arange(len(ids)), self._empty[part])


class EmbeddedCorpus:
    """The shards of an embedding folder, a block each, read again at every pass."""

    def __init__(self, folder: pathlib.Path, system: System):
        """Opens a finished folder.

        Raises:
            BadInput: it is another model's, or holds vectors that those asked for cannot be made of.
        """
        assert system.encoder is not None
        self._folder, self._wanted = EmbeddingFolder.read(folder), system.settings.quantization
        stored, dims = self._folder.settings, system.settings.dims or system.encoder.dims
        if stored.model_fingerprint != system.encoder.fingerprint:
            raise BadInput(
                f"{folder} was embedded by model {stored.model_fingerprint}, not by {system.name} "
                f"({system.encoder.fingerprint}); embed the corpus again"
            )
        fits = stored.quantization in (self._wanted, "none") and stored.dims == dims and stored.bit_order == "big"
        if not fits:
            raise BadInput(
                f"{folder} holds {stored.quantization} vectors of {stored.dims} dimensions, "
                f"asked for are {self._wanted} of {dims}; embed with --quantization {self._wanted} --dims {dims}"
            )

    def ids(self) -> Iterator[str]:
        for _, chunks in itertools.groupby(self._folder.described(), key=lambda row: row["row"]):
            yield _document_id(next(chunks))

    def blocks(self) -> Iterator[Block]:
        described = self._folder.described()
        for vectors in self._folder.vectors():
            chunks = list(itertools.islice(described, len(vectors)))
            if not chunks:
                continue
            numbers = np.array([row["row"] for row in chunks])
            starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
            ids = [_document_id(chunks[start]) for start in starts]
            same = self._folder.settings.quantization == self._wanted
            read = np.asarray(vectors) if same else quantize(np.asarray(vectors), self._wanted)
            yield Block(ids, read, starts, np.array([row.get("empty", False) for row in chunks]))


def _document_id(described: dict[str, Any]) -> str:
    return described.get("document", described["id"])


def encoding(system: System) -> dict[str, Any]:
    """How a system's texts are encoded, before quantization.

    Raises:
        BadInput: they are to be encoded in the context of their documents, which these benchmarks have not.
    """
    settings = system.settings
    if settings.context:
        raise BadInput("documents stand alone here, or in the context they were embedded in; leave --context out")
    return {
        "quantization": "none",
        "dims": settings.dims,
        "overflow": "truncate" if settings.truncate else "error",
    }


def read_corpus(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Ids and texts, a title before its text, of a corpus.jsonl (BEIR).

    Raises:
        BadInput: a line has no "_id" or no text, or there is none; the message names it.
    """
    ids, texts = [], []
    for number, line in rows.numbered_lines(path):
        try:
            row = rows.parse_object(line)
            title, text = row.get("title") or "", row["text"]
            ids.append(str(row["_id"]))
            texts.append(f"{title} {text}" if title else text)
        except (ValueError, KeyError) as error:
            raise BadInput(f"{path}, line {number}: {error}; each line is one object with _id and text") from None
    if not ids:
        raise BadInput(f"{path} holds no document; give lines of one object with _id and text")
    return ids, texts
