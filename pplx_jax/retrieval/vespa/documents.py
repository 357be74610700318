"""The documents of an embedding folder as Vespa's JSON has them: a row's chunks together, tensors in hexadecimal."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.quantization import BitOrder, Quantization, pack_bits, unpack_bits
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.vespa.application import DOCUMENT_TYPE, NAMESPACE

# What com.yahoo.text.Text of vespa-engine/vespa refuses in strings: control characters and noncharacters.
_REFUSED = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\ufdd0-\ufddf"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_REPLACEMENT = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Document:
    """One document to put: its id, and its fields as JSON has them."""

    id: str
    fields: dict[str, Any]

    @property
    def operation(self) -> dict[str, Any]:
        """The line of a feed file."""
        return {"put": f"id:{NAMESPACE}:{DOCUMENT_TYPE}::{self.id}", "fields": self.fields}


def documents_by_shard(folder: EmbeddingFolder, start: int = 0) -> Iterator[list[Document]]:
    """Yields the documents of each shard from shard `start` on.

    A chunk of an empty text keeps its place but has no vector, and a document of nothing else is left out: neither
    can be a hit.

    Raises:
        BadInput: an id that Vespa cannot take, or a damaged line.
    """
    for place, vectors in enumerate(folder.vectors()):
        if place >= start:
            yield list(_documents(folder, vectors, [row for _, row in folder.described_of(place)]))


def _documents(folder: EmbeddingFolder, vectors: np.ndarray, described: list[dict[str, Any]]) -> Iterator[Document]:
    settings = folder.settings
    signs = packed_signs(vectors, settings.quantization, settings.bit_order)
    numbered = enumerate(described)
    for _, group in itertools.groupby(numbered, key=lambda numbered_row: numbered_row[1]["row"]):
        members = list(group)
        rows = [row for _, row in members]
        kept = [(str(chunk), number) for chunk, (number, row) in enumerate(members) if not row.get("empty")]
        if not kept:
            continue
        identity = rows[0].get("document", rows[0]["id"])
        if not identity or _REFUSED.search(identity):
            raise BadInput(f"{folder.path}: the id {identity!r} is empty or holds a control character; give another")
        fields: dict[str, Any] = {
            "id": identity,
            "chunk_ids": [row["id"] for row in rows],
            "chunks": [_REFUSED.sub(_REPLACEMENT, row["text"]) for row in rows],
            "signs": _blocks(signs, kept),
        }
        if settings.quantization == "int8":
            fields["vectors"] = _blocks(vectors, kept)
        if "path" in rows[0]:
            fields["path"] = _REFUSED.sub(_REPLACEMENT, str(rows[0]["path"]))
        if isinstance(rows[0].get("line"), int):
            fields["line"] = rows[0]["line"]
        yield Document(identity, fields)


def packed_signs(vectors: np.ndarray, quantization: Quantization, bit_order: BitOrder) -> np.ndarray:
    """The signs of embeddings, most significant bit first, whatever order they are kept in.

    Those of INT8 embeddings are the signs of the integers, so a pooled value in (-0.5 / 127, 0), which rounds to 0,
    counts as positive; queries are treated the same way.

    Args:
        vectors: [N, width] of the quantization "int8", "binary" or "ubinary".

    Returns:
        uint8 [N, dims / 8].
    """
    if quantization != "ubinary":
        return pack_bits(vectors)
    return np.asarray(vectors) if bit_order == "big" else pack_bits(unpack_bits(vectors, bit_order))


def _blocks(vectors: np.ndarray, kept: Sequence[tuple[str, int]]) -> dict[str, dict[str, str]]:
    """A tensor of one mapped dimension: label -> two hexadecimal digits a cell, in two's complement."""
    return {"blocks": {label: vectors[number].tobytes().hex() for label, number in kept}}
