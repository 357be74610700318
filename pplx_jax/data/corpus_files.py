"""Reads the corpus files: JSON lines as records of text fields and other columns, checked line by line."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pplx_jax.errors import BadInput

PathLike = str | os.PathLike[str]
Record = dict[str, Any]

BLOCK_RECORDS = 1024
BLOCK_CHARACTERS = 1_000_000  # a block of long texts ends sooner: memory stays bounded


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Records of one file, and which of their fields are text to tokenise.

    Attributes:
        name: says what the records are.
        records: gives a fresh iterator of records (dicts of the fields below).
        texts: fields to tokenise.
        columns: the other fields -> "int32" or "string".
    """

    name: str
    records: Callable[[], Iterator[Record]]
    texts: tuple[str, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def blocks(self) -> Iterator[dict[str, list[Any]]]:
        """Records in blocks: field -> its values in up to `BLOCK_RECORDS` records, in file order."""
        names = (*self.texts, *self.columns)
        block: list[Record] = []
        characters = 0
        for record in self.records():
            block.append(record)
            characters += sum(len(record[name]) for name in self.texts)
            if len(block) == BLOCK_RECORDS or characters >= BLOCK_CHARACTERS:
                yield {name: [record[name] for record in block] for name in names}
                block, characters = [], 0
        if block:
            yield {name: [record[name] for record in block] for name in names}


def text_corpus(path: PathLike) -> Corpus:
    """`text.jsonl`: texts for diffusion pretraining, as `tokens`."""

    def records() -> Iterator[Record]:
        return ({"tokens": line["text"]} for line in _json_lines(path, text=str))

    return Corpus("text", records, ("tokens",))


def pair_corpus(path: PathLike) -> Corpus:
    """`pairs.jsonl`: `query`, `document`, `document_hash` (of its text) and `source` (a name)."""

    def records() -> Iterator[Record]:
        for line in _json_lines(path, query=str, document=str, source=str):
            yield {
                "query": line["query"],
                "document": line["document"],
                "document_hash": _hash(line["document"]),
                "source": line["source"],
            }

    return Corpus("pairs", records, ("query", "document"), {"document_hash": "int32", "source": "string"})


def chunk_corpus(path: PathLike, max_chunks: int) -> Corpus:
    """Chunks of `documents.jsonl` as `chunks`, with the number of their `document` (one with queries)."""

    def records() -> Iterator[Record]:
        for document, (chunks, _, _) in enumerate(_documents(path, max_chunks)):
            for chunk in chunks:
                yield {"chunks": chunk, "document": document}

    return Corpus("chunks", records, ("chunks",), {"document": "int32"})


def query_corpus(path: PathLike, max_chunks: int) -> Corpus:
    """Queries of `documents.jsonl`: `query`, its `document`, gold `chunk`, `document_hash` of all chunks, `source`."""

    def records() -> Iterator[Record]:
        for document, (chunks, queries, source) in enumerate(_documents(path, max_chunks)):
            document_hash = _hash("\0".join(chunks))
            for text, chunk in queries:
                yield {
                    "query": text,
                    "document": document,
                    "chunk": chunk,
                    "document_hash": document_hash,
                    "source": source,
                }

    columns = {"document": "int32", "chunk": "int32", "document_hash": "int32", "source": "string"}
    return Corpus("contextual_queries", records, ("query",), columns)


def _hash(text: str) -> int:
    """Signed 32-bit CRC of a text: two different texts agree by a chance of one in four billion."""
    return int(np.uint32(zlib.crc32(text.encode())).view(np.int32))


def _documents(path: PathLike, max_chunks: int) -> Iterator[tuple[list[str], list[tuple[str, int]], str]]:
    """(chunks, queries as (text, gold chunk), source, if any) of every document, or part of one, that has queries."""
    for line in _json_lines(path, chunks=list, queries=list):
        chunks, queries = line["chunks"], line["queries"]
        for query in queries:
            if not 0 <= query["chunk"] < len(chunks):
                raise BadInput(
                    f"{path}: document {line.get('id')} has {len(chunks)} chunks, a query wants chunk "
                    f"{query['chunk']}; count chunks from 0"
                )
        parts = -(-len(chunks) // max_chunks)
        bounds = [part * len(chunks) // parts for part in range(parts)] + [len(chunks)]
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            own = [(query["text"], query["chunk"] - start) for query in queries if start <= query["chunk"] < stop]
            if own:
                yield chunks[start:stop], own, str(line.get("source", ""))


def _json_lines(path: PathLike, **fields: type) -> Iterator[Record]:
    """Objects of a JSON-lines file that hold the given fields."""
    try:
        file = pathlib.Path(path).open(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); build the corpus first") from None
    with file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise BadInput(f"{path}:{number}: not JSON ({error}); build the corpus again") from None
            for name, kind in fields.items():
                if not isinstance(line, dict) or not isinstance(line.get(name), kind):
                    raise BadInput(f"{path}:{number}: no {name} of type {kind.__name__}; build the corpus again")
            yield line
