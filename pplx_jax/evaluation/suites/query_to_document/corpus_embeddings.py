"""The vectors of a corpus in blocks: read from the shards that `embed` wrote, or encoded here and kept in memory."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence, Set

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import document_text
from pplx_jax.data.io.json_lines import parse_object
from pplx_jax.data.io.row_files import rows_of_files
from pplx_jax.evaluation.scoring.system import System, pool
from pplx_jax.inference.encoder import document_encoder
from pplx_jax.kernels.quantization import quantize, zero_rows
from pplx_jax.retrieval.embeddings.folder import document_of
from pplx_jax.retrieval.embeddings.open_embeddings import open_embeddings

_DOCUMENTS_PER_BLOCK = 16_384


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive documents.

    Attributes:
        ids: N ids.
        vectors: [M, width], M >= N. The chunks of a document are consecutive.
        starts: int64 [N], index of each document's first vector.
        empty: bool [M], whether a vector belongs to an empty text, which matches nothing.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    starts: np.ndarray
    empty: np.ndarray

    def document_scores(self, scores: np.ndarray) -> np.ndarray:
        """Returns document scores [Q, N] from vector scores [Q, M]: the maximum over each document's chunks."""
        scores = np.where(self.empty, np.float32(-np.inf), scores)
        return scores if len(self.ids) == len(self.empty) else np.maximum.reduceat(scores, self.starts, axis=1)

    def cut(self, vectors: int) -> Iterator[slice]:
        """Yields consecutive documents that have about this number of vectors together, and at most it if they can."""
        ends = np.append(self.starts[1:], len(self.vectors))
        begin = 0
        while begin < len(self.ids):
            end = max(begin + 1, int(np.searchsorted(ends, self.starts[begin] + vectors, "right")))
            yield slice(begin, end)
            begin = end

    def __getitem__(self, documents: slice) -> "Block":
        """Returns consecutive documents without copying their vectors."""
        ends = np.append(self.starts[1:], len(self.vectors))[documents]
        starts = self.starts[documents]
        own = slice(starts[0], ends[-1])
        return Block(self.ids[documents], self.vectors[own], starts - starts[0], self.empty[own])

    def taken(self, documents: Sequence[int] | np.ndarray) -> "Block":
        """Returns the block with only the documents at these indices."""
        ends = [*self.starts[1:], len(self.vectors)]
        chosen = [np.arange(self.starts[place], ends[place]) for place in documents]
        places = np.concatenate([np.empty(0, np.int64), *chosen])
        starts = np.cumsum([0, *map(len, chosen)])[: len(chosen)]
        return Block([self.ids[place] for place in documents], self.vectors[places], starts, self.empty[places])


def joined(blocks: Sequence[Block]) -> Block:
    """Concatenates blocks."""
    offsets = np.cumsum([0, *(len(block.vectors) for block in blocks)])
    return Block(
        [identity for block in blocks for identity in block.ids],
        np.concatenate([block.vectors for block in blocks]),
        np.concatenate([block.starts + offset for block, offset in zip(blocks, offsets, strict=False)]),
        np.concatenate([block.empty for block in blocks]),
    )


class EncodedCorpus:
    """Texts encoded by the system's model. All vectors are in memory."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str], system: System):
        """Encodes N texts.

        Raises:
            BadInput: a text is over the model's limit, unless the settings allow to cut it.
        """
        assert system.encoder is not None
        self._ids, self._texts = ids, texts
        pooled = pool(document_encoder(system.encoder), ids, texts, system.settings)
        self._vectors = quantize(pooled, system.settings.quantization)
        self._empty = zero_rows(pooled)

    def texts(self, names: Set[str]) -> dict[str, str]:
        """Returns the texts of these documents by id."""
        return {name: text for name, text in zip(self._ids, self._texts, strict=True) if name in names}

    def blocks(self) -> Iterator[Block]:
        for begin in range(0, len(self._ids), _DOCUMENTS_PER_BLOCK):
            part = slice(begin, begin + _DOCUMENTS_PER_BLOCK)
            ids = self._ids[part]
            yield Block(ids, self._vectors[part], np.arange(len(ids)), self._empty[part])


class EmbeddedCorpus:
    """The shards of an embedding folder, one block each. Every pass reads them again."""

    def __init__(self, folder: pathlib.Path, system: System):
        """Opens a finished folder.

        Raises:
            BadInput: another model made it, or its vectors cannot be converted to the requested ones.
        """
        assert system.encoder is not None
        self._folder, self._wanted = open_embeddings(folder), system.settings.quantization
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
                f"not {self._wanted} of {dims}; embed with --quantization {self._wanted} --dims {dims}"
            )

    def texts(self, names: Set[str]) -> dict[str, str]:
        """Returns the texts of these documents by id. Chunks are joined by spaces."""
        found: dict[str, str] = {}
        for row in self._folder.described():
            if (name := document_of(row)) in names:
                found[name] = f"{found[name]} {row['text']}" if name in found else row["text"]
        return found

    def blocks(self) -> Iterator[Block]:
        described = self._folder.described()
        for vectors in self._folder.vectors():
            chunks = list(itertools.islice(described, len(vectors)))
            if not chunks:
                continue
            numbers = np.array([row["row"] for row in chunks])
            starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
            ids = [document_of(chunks[start]) for start in starts]
            same = self._folder.settings.quantization == self._wanted
            read = np.asarray(vectors) if same else quantize(np.asarray(vectors), self._wanted)
            yield Block(ids, read, starts, np.array([row.get("empty", False) for row in chunks]))


def read_corpus(files: Sequence[pathlib.Path]) -> tuple[list[str], list[str]]:
    """Reads ids and texts of the corpus of a BEIR folder; see `beir.corpus_files` and `beir.document_text`.

    Raises:
        BadInput: a line has no "_id" or no "text" (the message names the line), or there is no line.
    """
    ids, texts = [], []
    for path, (number, source) in rows_of_files(files):
        try:
            row = parse_object(source) if isinstance(source, bytes) else source
            text = document_text(row.get("title"), row["text"])
            ids.append(str(row["_id"]))
            texts.append(text)
        except (ValueError, KeyError, AttributeError) as error:
            raise BadInput(f"{path}, line {number}: {error}; each line is one object with _id and text") from None
    if not ids:
        raise BadInput(f"{files[0]} has no documents; each line is one object with _id and text")
    return ids, texts
