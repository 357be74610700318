"""The kinds of examples, and what a token table of each kind holds.

A training stage names the kind that it reads. Several stages may read one kind: they share its tables and choose their
sources with a `Mixture`.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Kind:
    """The layout of the token tables of one kind of example.

    Attributes:
        folder: the folder below `data/tokens` that holds the tables of this kind. Manifests have it as `stage`,
            because each kind was first read by the stage of that name.
        features: required features with one row per example.
        side_features: required features with one row per chunk or per document.
    """

    folder: str
    features: tuple[str, ...]
    side_features: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "text": Kind("diffusion", ("tokens",)),
    "pair": Kind("pair", ("query", "document", "document_hash", "source")),
    "triplet": Kind("triplet", ("query", "document", "document_hash", "source", "negatives")),
    "contextual": Kind(
        "contextual", ("query", "document", "chunk", "document_hash"), side_features=("chunks", "chunks_of_document")
    ),
}
KIND_OF_FOLDER: Mapping[str, str] = {kind.folder: name for name, kind in KINDS.items()}
