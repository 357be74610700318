"""Examples of a source gathered in blocks of columns: what is tokenised at once and written at once.

A block of N examples holds lists: text features of any number of texts, other features one value a row.

| kind | text features | other features |
|---|---|---|
| text | tokens [N] | |
| pair | query [N], document [N] | document_hash [N] |
| triplet | query [N], document [N], negatives [N x K], example by example | document_hash [N] |
| contextual | chunks [all], query [Q] | chunk_counts [N]; document (its place in the block), chunk, document_hash [Q] |

Every kind has `source` and `language` beside each example (each query, of the contextual kind).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pplx_jax.data.source import Example, texts_of

Block = dict[str, Any]

RECORDS = 1024
CHARACTERS = 1_000_000  # a block of long texts ends sooner: memory stays bounded

TEXTS: Mapping[str, tuple[str, ...]] = {
    "text": ("tokens",),
    "pair": ("query", "document"),
    "triplet": ("query", "document", "negatives"),
    "contextual": ("query", "chunks"),
}
_LABELS = {"source": "string", "language": "string"}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "text": _LABELS,
    "pair": {"document_hash": "int32", **_LABELS},
    "triplet": {"document_hash": "int32", **_LABELS},
    "contextual": {
        **dict.fromkeys(("chunk_counts", "document", "chunk", "document_hash"), "int32"),
        **_LABELS,
    },
}


def blocks(kind: str, examples: Iterable[Example]) -> Iterator[Block]:
    """Examples of one kind in blocks of up to `RECORDS`, in their order."""
    pending: list[Example] = []
    characters = 0
    for example in examples:
        pending.append(example)
        characters += sum(map(len, texts_of(example)))
        if len(pending) == RECORDS or characters >= CHARACTERS:
            yield _block(kind, pending)
            pending, characters = [], 0
    if pending:
        yield _block(kind, pending)


def _block(kind: str, examples: list[Example]) -> Block:
    if kind == "contextual":
        return _documents(examples)
    block: Block = {name: [example[name] for example in examples] for name in COLUMNS[kind]}
    if kind == "text":
        return block | {"tokens": [example["text"] for example in examples]}
    block["query"] = [example["query"] for example in examples]
    block["document"] = [example["positive"] for example in examples]
    if kind == "triplet":
        block["negatives"] = [text for example in examples for text in example["negatives"]]
    return block


def _documents(examples: list[Example]) -> Block:
    rows = [(place, text, chunk) for place, example in enumerate(examples) for text, chunk in example["queries"]]
    owners = [examples[place] for place, _, _ in rows]
    return {
        "chunks": [chunk for example in examples for chunk in example["chunks"]],
        "chunk_counts": [len(example["chunks"]) for example in examples],
        "query": [text for _, text, _ in rows],
        "document": [place for place, _, _ in rows],
        "chunk": [chunk for _, _, chunk in rows],
        **{name: [owner[name] for owner in owners] for name in ("document_hash", "source", "language")},
    }
