"""The kinds of examples, and what a token table of each kind holds.

A training stage names the kind that it reads (`BatchSpec.kind`). Several stages may read one kind: they share its
tables, and choose their sources with a `Mixture`.
"""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["text", "pair", "triplet", "contextual"]

# The folder below `data/tokens` that holds the tables of each kind, named after the first stage that read it. Manifests
# have it as `stage`.
FOLDERS: Mapping[str, str] = {"text": "diffusion", "pair": "pair", "triplet": "triplet", "contextual": "contextual"}
KIND_OF_FOLDER: Mapping[str, str] = {folder: kind for kind, folder in FOLDERS.items()}

# Required features with one row per example.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "text": ("tokens",),
    "pair": ("query", "document", "document_hash", "source"),
    "triplet": ("query", "document", "document_hash", "source", "negatives"),
    "contextual": ("query", "document", "chunk", "document_hash"),
}
# Required features with one row per chunk or per document.
SIDE_FEATURES: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "pair": (),
    "triplet": (),
    "contextual": ("chunks", "chunks_of_document"),
}
