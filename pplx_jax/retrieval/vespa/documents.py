"""Converts an embedding folder to Vespa's JSON documents: the chunks of a row together, tensors in hexadecimal."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, document_of
from pplx_jax.retrieval.packed_signs import packed_signs
from pplx_jax.retrieval.vespa.application import DOCUMENT_TYPE, NAMESPACE

# Characters that com.yahoo.text.Text of vespa-engine/vespa refuses: control characters and noncharacters.
_REFUSED = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\ufdd0-\ufddf"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_REPLACEMENT = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Document:
    """A document: its id and its JSON fields."""

    id: str
    fields: dict[str, Any]

    @property
    def operation(self) -> dict[str, Any]:
        """The put operation, a line of a feed file."""
        return {"put": f"id:{NAMESPACE}:{DOCUMENT_TYPE}::{self.id}", "fields": self.fields}


def documents_by_shard(folder: EmbeddingFolder, start: int = 0) -> Iterator[list[Document]]:
    """Yields the documents of each shard from shard `start` on.

    A chunk with an empty text keeps its index but has no vector. A document with only such chunks is left out. Neither
    can be a hit.

    Raises:
        BadInput: Vespa does not accept an id, or a line is damaged.
    """
    for shard, vectors in enumerate(folder.vectors()):
        if shard >= start:
            yield list(_documents(folder, vectors, [row for _, row in folder.described_of(shard)]))


def _documents(folder: EmbeddingFolder, vectors: np.ndarray, described: list[dict[str, Any]]) -> Iterator[Document]:
    settings = folder.settings
    signs = packed_signs(vectors, settings.quantization, settings.bit_order)
    numbered = enumerate(described)
    for _, group in itertools.groupby(numbered, key=lambda numbered_row: numbered_row[1]["row"]):
        members = list(group)
        rows = [row for _, row in members]
        stored = [(str(chunk), number) for chunk, (number, row) in enumerate(members) if not row.get("empty")]
        if not stored:
            continue
        identity = document_of(rows[0])
        if not identity or _REFUSED.search(identity):
            raise BadInput(f"{folder.path}: the id {identity!r} is empty or contains a control character; change it")
        fields: dict[str, Any] = {
            "id": identity,
            "chunk_ids": [row["id"] for row in rows],
            "chunks": [_REFUSED.sub(_REPLACEMENT, row["text"]) for row in rows],
            "signs": _blocks(signs, stored),
        }
        if settings.quantization == "int8":
            fields["vectors"] = _blocks(vectors, stored)
        if "path" in rows[0]:
            fields["path"] = _REFUSED.sub(_REPLACEMENT, str(rows[0]["path"]))
        if isinstance(rows[0].get("line"), int):
            fields["line"] = rows[0]["line"]
        yield Document(identity, fields)


def _blocks(vectors: np.ndarray, stored: Sequence[tuple[str, int]]) -> dict[str, dict[str, str]]:
    """Returns a tensor with one mapped dimension: label -> two hexadecimal digits per cell, in two's complement."""
    return {"blocks": {label: vectors[number].tobytes().hex() for label, number in stored}}
