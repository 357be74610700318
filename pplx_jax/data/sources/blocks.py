"""Gathers the examples of a source into blocks of columns, which are tokenised and written together.

A block of N examples holds lists. Text columns are tokenised; other columns have one value per row.

| kind | text columns | other columns |
|---|---|---|
| text | tokens [N] | |
| pair | query [N], document [N] | |
| triplet | query [N], document [N], negatives [N x K], example by example | |
| contextual | chunks [all], query [Q] | chunk_counts [N]; document (its index in the block) [Q], chunk [Q] |

A block of triplets with teacher scores also has `scores`, float32 [N x (1 + K)], example by example.

Every kind has `source` and `language` for each example; the contextual kind has them for each query.

A block also carries the counts of the rows that were read for it, so that they reach the writer of the table, even on
another machine: `rows_read` and `rows_dropped` [1], `bad_places` and `bad_reasons` [bad rows since the block before].
The last block of a shard may have no examples. A shard without rows gives one block without examples.
"""

from collections.abc import Iterable, Iterator, Mapping

from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.example_reader import Example, texts_of
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.table_maker import Block

RECORDS = 1024
CHARACTERS = 1_000_000  # a block of long texts has fewer records, so that memory stays bounded

TEXTS: Mapping[str, tuple[str, ...]] = {
    "text": ("tokens",),
    "pair": ("query", "document"),
    "triplet": ("query", "document", "negatives"),
    "contextual": ("query", "chunks"),
}
_LABELS = {"source": "string", "language": "string"}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "text": _LABELS,
    "pair": _LABELS,
    "triplet": _LABELS,
    "contextual": {**dict.fromkeys(("chunk_counts", "document", "chunk"), "int32"), **_LABELS},
}
SCORES = {"scores": "float32"}  # a further column of triplets with teacher scores
ROW_COUNTS: Mapping[str, str] = {
    "rows_read": "int32",
    "rows_dropped": "int32",
    "bad_places": "string",
    "bad_reasons": "string",
}


def columns_of(source: Source) -> Mapping[str, str]:
    """Returns the other columns of the blocks of a source, with their types."""
    return {**COLUMNS[source.kind], **(SCORES if source.has_scores else {})}


def blocks(source: Source, examples: Iterable[Example], bad: BadRows) -> Iterator[Block]:
    """Yields the examples of a source in blocks of up to `RECORDS`, in order, with what `bad` counts meanwhile."""
    read = dropped = 0
    any_block = False

    def row_counts() -> Block:
        nonlocal read, dropped
        since = {"rows_read": [bad.rows - read], "rows_dropped": [bad.dropped - dropped]}
        read, dropped = bad.rows, bad.dropped
        places, reasons = zip(*bad.take(), strict=True) if bad.pending else ((), ())
        return {**since, "bad_places": list(places), "bad_reasons": list(reasons)}

    for group in _grouped(examples):
        any_block = True
        yield _columns(source.kind, group) | row_counts()
    if bad.rows > read or bad.pending or not any_block:
        yield dict.fromkeys((*TEXTS[source.kind], *columns_of(source)), []) | row_counts()


def count_rows(block: Block, bad: BadRows) -> None:
    """Adds the row counts of a block (arrays, texts as str) to `bad`."""
    places = [
        (str(place), str(reason)) for place, reason in zip(block["bad_places"], block["bad_reasons"], strict=True)
    ]
    bad.rows += int(block["rows_read"][0]) - len(places)
    bad.dropped += int(block["rows_dropped"][0])
    for place, reason in places:
        bad.bad(place, reason)


def _grouped(examples: Iterable[Example]) -> Iterator[list[Example]]:
    pending: list[Example] = []
    characters = 0
    for example in examples:
        pending.append(example)
        characters += sum(map(len, texts_of(example)))
        if len(pending) == RECORDS or characters >= CHARACTERS:
            yield pending
            pending, characters = [], 0
    if pending:
        yield pending


def _columns(kind: str, examples: list[Example]) -> Block:
    if kind == "contextual":
        return _document_columns(examples)
    block: Block = {name: [example[name] for example in examples] for name in COLUMNS[kind]}
    if kind == "text":
        return block | {"tokens": [example["text"] for example in examples]}
    block["query"] = [example["query"] for example in examples]
    block["document"] = [example["positive"] for example in examples]
    if kind == "triplet":
        block["negatives"] = [text for example in examples for text in example["negatives"]]
        if "scores" in examples[0]:
            block["scores"] = [score for example in examples for score in example["scores"]]
    return block


def _document_columns(examples: list[Example]) -> Block:
    queries = [(place, text, chunk) for place, example in enumerate(examples) for text, chunk in example["queries"]]
    documents = [examples[place] for place, _, _ in queries]
    return {
        "chunks": [chunk for example in examples for chunk in example["chunks"]],
        "chunk_counts": [len(example["chunks"]) for example in examples],
        "query": [text for _, text, _ in queries],
        "document": [place for place, _, _ in queries],
        "chunk": [chunk for _, _, chunk in queries],
        **{name: [document[name] for document in documents] for name in _LABELS},
    }
