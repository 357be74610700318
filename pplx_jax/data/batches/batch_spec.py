"""What a stage wants in a batch: a declaration. `HostBatches` selects, packs and places such batches.

| class | examples (`kind`) | arrays beside `tokens`, `segment_ids`, `positions`, `chunk_ids` [B, L] |
|---|---|---|
| `TextBatch` | text | |
| `PairBatch` | pair | `query` [N, 2], `document` [N, 2], `document_hash` [N], `query_hash` [N], `weight` [N] |
| `TripletBatch` | triplet | those, `negatives` [N, K, 2], `negative_hash` [N, K], `scores` [N, 1 + K] if wanted |
| `ContextualBatch` | contextual | as `PairBatch`, with `chunks` [N, C, 2], `chunk` [N], `also_positive` [N, C] |

A reference such as `query` is (sequence, slot): where in the packed batch the text of example i is. `weight` is there
only if sources are weighted. A stage of another layout subclasses `BatchSpec`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches import packed_batch
from pplx_jax.data.batches.packed_batch import PackedBatch, Texts
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import TokenTable


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Examples of one kind, packed into sequences of one length.

    Attributes:
        batch_size: N, examples a step, over all devices.
        length: L, tokens of a sequence; a longer text is cut.
        slots: S, most texts of a sequence; None for any number.
        microbatches: the number of sequences is a multiple of it.
        kind: of the examples, a key of `data.tokens.kinds.FOLDERS`.
    """

    batch_size: int
    length: int
    slots: int | None = None
    microbatches: int = 1

    kind: ClassVar[str]

    def texts(self, table: TokenTable, indices: np.ndarray) -> list[Texts]:
        """The texts that these examples put into a batch."""
        raise NotImplementedError

    def pack(self, table: TokenTable, indices: np.ndarray, sequences: int, first_sequence: int = 0) -> PackedBatch:
        """Packs examples of a table.

        Args:
            table: of this kind of examples.
            indices: [n] examples.
            sequences: number of sequences to fill.
            first_sequence: place of the first of them in a larger batch; references count from there.
        """
        raise NotImplementedError

    def sequences_needed(self, table: TokenTable, multiple_of: int = 1) -> int:
        """B: sequences that batches of this table fill, a multiple of `multiple_of` x `microbatches`."""
        multiple = multiple_of * self.microbatches
        return packed_batch.sequences_needed(
            table, self.texts, self.batch_size, self.length, slots=self.slots, multiple_of=multiple
        )

    def part(self, parts: int) -> BatchSpec:
        """The spec of one of `parts` equal parts of the batch.

        Raises:
            BadInput: the batch size is not a multiple of `parts`.
        """
        if self.batch_size % parts:
            raise BadInput(f"a batch of {self.batch_size} cannot be packed in {parts} equal groups")
        return dataclasses.replace(self, batch_size=self.batch_size // parts)


@dataclasses.dataclass(frozen=True)
class TextBatch(BatchSpec):
    """Raw text: every text of an example is a segment of its own."""

    kind: ClassVar[str] = "text"

    def texts(self, table, indices):
        return [Texts(table["tokens"], indices)]

    def pack(self, table, indices, sequences, first_sequence=0):
        return packed_batch.text_batch(table, indices, sequences=sequences, length=self.length)


@dataclasses.dataclass(frozen=True)
class PairBatch(BatchSpec):
    """Queries and their documents.

    Attributes, beside those of `BatchSpec`:
        source_weights: (source, weight) pairs; see `ContrastiveStage.source_weights`.
    """

    source_weights: tuple[tuple[str, float], ...] = ()

    kind: ClassVar[str] = "pair"

    def texts(self, table, indices):
        return packed_batch.pair_texts(table, indices)

    def pack(self, table, indices, sequences, first_sequence=0):
        arrays, metrics = packed_batch.pair_batch(table, indices, **self._shape(sequences, first_sequence))
        return PackedBatch(arrays | self._query_arrays(table, indices), metrics)

    def _shape(self, sequences: int, first_sequence: int) -> dict[str, int]:
        slots = self.length if self.slots is None else self.slots
        return {"sequences": sequences, "length": self.length, "slots": slots, "first_sequence": first_sequence}

    def _query_arrays(self, table: TokenTable, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`weight` [N] float32 if sources are weighted, and `query_hash` [N] int32, equal for copies of a query."""
        return self._weights(table, indices) | {"query_hash": token_hashes(table["query"][row] for row in indices)}

    def _weights(self, table: TokenTable, indices: np.ndarray) -> dict[str, np.ndarray]:
        if not self.source_weights:
            return {}
        names = table.manifest.get("sources", []) if "source" in table else []
        unknown = [source for source, _ in self.source_weights if source not in names]
        if unknown:
            raise BadInput(
                f"source_weights: no source {unknown[0]!r} in {table.folder}, which has {', '.join(names) or 'none'}"
            )
        weight_of = np.ones(len(names), np.float32)
        for source, weight in self.source_weights:
            weight_of[names.index(source)] = weight
        return {"weight": weight_of[table["source"][indices]]}


@dataclasses.dataclass(frozen=True)
class TripletBatch(PairBatch):
    """Queries, documents and mined hard negatives.

    Attributes, beside those of `PairBatch`:
        negatives: K, the first K mined negatives of each example.
        scores: whether the batch has `scores`, the teacher's float32 scores of the positive and of each negative.
    """

    negatives: int = 7
    scores: bool = False

    kind: ClassVar[str] = "triplet"

    def texts(self, table, indices):
        self._require_scores(table)
        return packed_batch.triplet_texts(table, indices, self.negatives)

    def pack(self, table, indices, sequences, first_sequence=0):
        shape = self._shape(sequences, first_sequence)
        arrays, metrics = packed_batch.triplet_batch(table, indices, **shape, negatives=self.negatives)
        mined = table["negatives"][indices, : self.negatives]
        arrays["negative_hash"] = np.asarray(table["document_hash"][mined], np.int32)
        if self.scores:
            self._require_scores(table)
            arrays["scores"] = np.asarray(table["scores"][indices, : 1 + self.negatives], np.float32)
        return PackedBatch(arrays | self._query_arrays(table, indices), metrics)

    def _require_scores(self, table: TokenTable) -> None:
        if self.scores and "scores" not in table:
            raise BadInput(
                f"{table.folder}: triplets without teacher scores, which the stage reads; name their column in "
                "Source.columns of each of its sources and tokenise again, or set TripletStage.teacher = ''"
            )


@dataclasses.dataclass(frozen=True)
class ContextualBatch(PairBatch):
    """Queries and whole documents of several chunks.

    Attributes, beside those of `PairBatch`:
        chunks: C, most chunks of a document.
    """

    chunks: int = 16

    kind: ClassVar[str] = "contextual"

    def texts(self, table, indices):
        return packed_batch.contextual_texts(table, indices)

    def pack(self, table, indices, sequences, first_sequence=0):
        shape = self._shape(sequences, first_sequence)
        arrays, metrics = packed_batch.contextual_batch(table, indices, **shape, chunks=self.chunks)
        return PackedBatch(arrays | self._query_arrays(table, indices), metrics)


def multiple_for(groups: int, shards: int) -> int:
    """What the sequences of each of `groups` groups must be a multiple of, so that `shards` devices share them all."""
    return shards // math.gcd(shards, groups)
