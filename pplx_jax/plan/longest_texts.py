"""A stage's batch in which every text has the recipe's maximum length: the memory that a plan must allow for."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from pplx_jax.data.batches.batch_spec import BatchSpec, multiple_for
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.recipes.recipe import Lengths
from pplx_jax.training.settings import Training


class LongestTexts:
    """Replacement for the token table of one batch; all texts have the maximum length. Its tokens take no memory.

    Args:
      kind: of the examples; a contextual example refers to its document by index.
      lengths: the maximum lengths.
      examples: their number.
      negatives: of each example.
    """

    pad_id, separator_id = 0, 1
    folder = pathlib.Path("the longest texts")

    def __init__(self, kind: str, lengths: Lengths, examples: int, negatives: int):
        documents: Any = _equal(examples * (1 + negatives), lengths.document)
        if kind == "contextual":
            documents = np.arange(examples, dtype=np.int32)
        chunks = lengths.chunks * np.arange(examples + 1)
        others = np.arange(examples * negatives, dtype=np.int32).reshape(examples, negatives) + examples
        self.count = examples
        self.manifest: dict[str, Any] = {}
        self._features: dict[str, Any] = {
            "tokens": _equal(examples, lengths.text),
            "query": _equal(examples, lengths.query),
            "document": documents,
            "negatives": others,
            "scores": np.zeros((examples, 1 + negatives), np.float32),
            "document_hash": np.arange(examples * (1 + negatives), dtype=np.int32),
            "chunk": np.zeros(examples, np.int32),
            "chunks": _equal(examples * lengths.chunks, lengths.chunk),
            "chunks_of_document": chunks,
        }

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def __getitem__(self, name: str) -> Any:
        return self._features[name]


def _equal(count: int, length: int) -> Ragged:
    return Ragged(np.broadcast_to(np.int32(2), count * length), np.arange(count + 1, dtype=np.int64) * length)


def text_lengths(segment_ids: np.ndarray) -> list[int]:
    """Returns the number of tokens of every text in packed sequences [B, L]."""
    found: list[int] = []
    for row in segment_ids:
        counts = np.bincount(row)[1:]
        found += counts[counts > 0].tolist()
    return found


class LongestBatch(NamedTuple):
    """A batch of the longest texts.

    Attributes:
      arrays: name -> shape and dtype in the whole batch.
      sequences: B, the number of sequences.
      texts: the number of tokens of every text.
    """

    arrays: dict[str, jax.ShapeDtypeStruct]
    sequences: int
    texts: list[int]


def longest_batch(training: Training, lengths: Lengths, row_shards: int) -> LongestBatch:
    """Returns the batch of a stage as `HostBatches` packs it for this number of row shards.

    Raises:
      BadInput: the batch does not divide into `Training.packing_groups`.
    """
    spec, groups = training.stage.batch, training.packing_groups
    multiple = multiple_for(groups, row_shards)
    key = repr((spec, lengths, groups, multiple))
    if key not in _batches:  # a stage has the same batch on several meshes
        _batches[key] = _pack(spec, lengths, groups, multiple)
    return _batches[key]


_batches: dict[str, LongestBatch] = {}


def _pack(spec: BatchSpec, lengths: Lengths, groups: int, multiple: int) -> LongestBatch:
    part = spec.part(groups)  # all groups are alike
    table: Any = LongestTexts(spec.kind, lengths, part.batch_size, getattr(spec, "negatives", 0))
    sequences = part.sequences_needed(table, multiple_of=multiple)
    packed = part.pack(table, np.arange(part.batch_size), sequences).arrays
    arrays = {
        name: jax.ShapeDtypeStruct((groups * len(array), *array.shape[1:]), array.dtype)
        for name, array in packed.items()
    }
    return LongestBatch(arrays, groups * sequences, groups * text_lengths(packed["segment_ids"]))
