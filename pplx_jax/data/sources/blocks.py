"""Examples of a source gathered in blocks of columns: what is tokenised at once and written at once.

A block of N examples holds lists: text features of any number of texts, other features one value a row.

| kind | text features | other features |
|---|---|---|
| text | tokens [N] | |
| pair | query [N], document [N] | |
| triplet | query [N], document [N], negatives [N x K], example by example | |
| contextual | chunks [all], query [Q] | chunk_counts [N]; document (its place in the block), chunk [Q] |

Every kind has `source` and `language` beside each example (each query, of the contextual kind).

What was read for a block goes with it, so that a count of bad rows reaches whoever writes the table, on another
machine too: `rows_read` and `rows_dropped` [1], `bad_places` and `bad_reasons` [bad rows since the block before]. The
last block of a shard may have no examples; that of a shard without a row is its only one.
"""

from collections.abc import Iterable, Iterator, Mapping

from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.source import Example, texts_of
from pplx_jax.data.tokens.table_maker import Block

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
    "pair": _LABELS,
    "triplet": _LABELS,
    "contextual": {**dict.fromkeys(("chunk_counts", "document", "chunk"), "int32"), **_LABELS},
}
ROWS: Mapping[str, str] = {
    "rows_read": "int32",
    "rows_dropped": "int32",
    "bad_places": "string",
    "bad_reasons": "string",
}


def blocks(kind: str, examples: Iterable[Example], bad: BadRows) -> Iterator[Block]:
    """Examples of one kind in blocks of up to `RECORDS`, in their order, with what `bad` counts meanwhile."""
    read = dropped = 0
    given = False

    def rows() -> Block:
        nonlocal read, dropped
        since = {"rows_read": [bad.rows - read], "rows_dropped": [bad.dropped - dropped]}
        read, dropped = bad.rows, bad.dropped
        places, reasons = zip(*bad.take(), strict=True) if bad.pending else ((), ())
        return {**since, "bad_places": list(places), "bad_reasons": list(reasons)}

    for block in _examples(kind, examples):
        given = True
        yield block | rows()
    if bad.rows > read or bad.pending or not given:
        yield dict.fromkeys((*TEXTS[kind], *COLUMNS[kind]), []) | rows()


def count_rows(block: Block, bad: BadRows) -> None:
    """Adds what was read for a block (arrays, texts str) to `bad`."""
    places = [
        (str(place), str(reason)) for place, reason in zip(block["bad_places"], block["bad_reasons"], strict=True)
    ]
    bad.rows += int(block["rows_read"][0]) - len(places)
    bad.dropped += int(block["rows_dropped"][0])
    for place, reason in places:
        bad.bad(place, reason)


def _examples(kind: str, examples: Iterable[Example]) -> Iterator[Block]:
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
        **{name: [owner[name] for owner in owners] for name in _LABELS},
    }
