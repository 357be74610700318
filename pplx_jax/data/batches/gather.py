"""Gathers examples of several token tables into one small table in memory, so that batches read a single table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pplx_jax.data.tokens.ragged import Ragged, ranges
from pplx_jax.data.tokens.token_table import TokenTable


class Gatherer:
    """Gathers examples of the token tables of one stage.

    Args:
        tables: of the same stage and vocabulary.

    Attributes:
        sources: names of all sources; `source` of a gathered table is an index into them.
    """

    def __init__(self, tables: Sequence[TokenTable]):
        self._tables = tables
        self._kind = tables[0].kind
        self.sources = list(dict.fromkeys(name for table in tables for name in table.manifest.get("sources", ())))
        number = {name: place for place, name in enumerate(self.sources)}
        self._renumber = [
            np.array([number[name] for name in table.manifest.get("sources", ())], np.int32) for table in tables
        ]

    def __call__(self, table: np.ndarray, row: np.ndarray, *, lengths_only: bool = False) -> TokenTable:
        """Gathers the examples `row` [n] of the tables numbered `table` [n], in this order.

        Args:
            table: [n] int; row: [n] int.
            lengths_only: texts have their lengths but no tokens (zeros that take no memory): enough to pack them.
        """
        parts = _Parts(self._tables, np.asarray(table), np.asarray(row), lengths_only)
        build: Callable[[_Parts], dict[str, Any]] = {
            "text": _diffusion,
            "pair": _pairs,
            "triplet": _triplets,
            "contextual": _contextual,
        }[self._kind]
        features = build(parts)
        if self.sources and all("source" in one for one in self._tables):
            sources = parts.array(lambda one, rows, number: self._renumber[number][one["source"][rows]])
            features["source"] = parts.padded(sources, features)
        first = self._tables[0]
        manifest = {**first.manifest, "count": len(row), "examples": len(row), "sources": self.sources}
        return TokenTable(features, manifest, first.folder.parent)


def example_lengths(table: TokenTable, rows: np.ndarray) -> np.ndarray:
    """Returns the tokens that each example adds to a batch, int64 [n]; a text shared by several counts for each."""

    def of(name: str, rows: np.ndarray) -> np.ndarray:
        return table[name].offsets[rows + 1] - table[name].offsets[rows]

    match table.kind:
        case "text":
            return of("tokens", rows)
        case "pair":
            return of("query", rows) + of("document", rows)
        case "triplet":
            return of("query", rows) + of("document", rows) + of("document", table["negatives"][rows]).sum(axis=1)
    document = table["document"][rows]
    first, last = table["chunks_of_document"][document], table["chunks_of_document"][document + 1]
    return of("query", rows) + table["chunks"].offsets[last] - table["chunks"].offsets[first] + last - first - 1


class _Parts:
    """The requested examples, table by table."""

    def __init__(self, tables: Sequence[TokenTable], table: np.ndarray, row: np.ndarray, lengths_only: bool):
        self.count = len(row)
        self._lengths_only = lengths_only
        self.members = [
            (int(number), tables[number], row[table == number], np.flatnonzero(table == number))
            for number in np.unique(table)
        ]

    def array(self, read: Callable[[TokenTable, np.ndarray, int], np.ndarray]) -> np.ndarray:
        """Returns the values of `read` (table, its rows, its number), in the order of the examples."""
        first = None
        for number, table, rows, places in self.members:
            values = read(table, rows, number)
            if first is None:
                first = np.zeros((self.count, *values.shape[1:]), values.dtype)
            first[places] = values
        assert first is not None
        return first

    def ragged(self, name: str, always: bool = False) -> Ragged:
        """Returns the texts `name` of the examples, in their order."""
        pieces = [(table[name], rows, places) for _, table, rows, places in self.members]
        return self.texts(pieces, self.count, always)

    def texts(
        self, pieces: Sequence[tuple[Ragged, np.ndarray, np.ndarray]], count: int, always: bool = False
    ) -> Ragged:
        """Joins pieces (source, its rows, their places) into one `Ragged` of `count` arrays. In `lengths_only`, values
        are read only if `always`."""
        lengths = np.zeros(count, np.int64)
        for texts, rows, places in pieces:
            lengths[places] = texts.offsets[rows + 1] - texts.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if self._lengths_only and not always:
            return Ragged(np.broadcast_to(np.int32(0), offsets[-1:]), offsets)
        values = np.empty(offsets[-1], np.int32)
        for texts, rows, places in pieces:
            values[ranges(offsets[places], lengths[places])] = texts.values[
                ranges(texts.offsets[rows], lengths[places])
            ]
        return Ragged(values, offsets)

    def padded(self, values: np.ndarray, features: dict[str, Any]) -> np.ndarray:
        """Returns `values` with zeros for rows that are not examples, if the table has such rows."""
        rows = len(features["query"])
        return np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])


def _diffusion(parts: _Parts) -> dict[str, Any]:
    features = {"tokens": parts.ragged("tokens")}
    if all("text_lengths" in table for _, table, _, _ in parts.members):
        features["text_lengths"] = parts.ragged("text_lengths", always=True)
    return features


def _pairs(parts: _Parts) -> dict[str, Any]:
    hashes = parts.array(lambda table, rows, _: table["document_hash"][rows])
    return {"query": parts.ragged("query"), "document": parts.ragged("document"), "document_hash": hashes}


def _triplets(parts: _Parts) -> dict[str, Any]:
    """Negatives that are positives of the examples refer to those; the others get rows after the examples."""
    negatives = parts.array(lambda table, rows, _: np.asarray(table["negatives"][rows]))
    documents, hashes, total = [], [parts.array(lambda table, rows, _: table["document_hash"][rows])], parts.count
    for _, table, rows, places in parts.members:
        known, first = np.unique(rows, return_index=True)
        extra = np.setdiff1d(negatives[places], known)
        where = np.concatenate([places[first], total + np.arange(len(extra))])
        wanted = np.concatenate([known, extra])
        order = np.argsort(wanted, kind="stable")
        negatives[places] = where[order][np.searchsorted(wanted[order], negatives[places])]
        documents += [(table["document"], rows, places), (table["document"], extra, total + np.arange(len(extra)))]
        hashes.append(table["document_hash"][extra])
        total += len(extra)
    query = parts.ragged("query")
    scored = all("scores" in table for _, table, _, _ in parts.members)
    scores = {"scores": parts.array(lambda table, rows, _: table["scores"][rows])} if scored else {}
    return scores | {
        "query": Ragged(query.values, np.pad(query.offsets, (0, total - parts.count), mode="edge")),
        "document": parts.texts(documents, total),
        "document_hash": np.concatenate(hashes),
        "negatives": parts.padded(negatives.astype(np.int32), {"query": range(total)}),
    }


def _contextual(parts: _Parts) -> dict[str, Any]:
    document = np.zeros(parts.count, np.int32)
    chunks, counts, total = [], [], 0
    for _, table, rows, places in parts.members:
        wanted, own = np.unique(table["document"][rows], return_inverse=True)
        document[places] = sum(map(len, counts)) + own
        starts = table["chunks_of_document"][wanted]
        counts.append(table["chunks_of_document"][wanted + 1] - starts)
        chunk_rows = ranges(starts, counts[-1])
        chunks.append((table["chunks"], chunk_rows, total + np.arange(len(chunk_rows))))
        total += len(chunk_rows)
    knowing = [member for member in parts.members if "also_positive" in member[1]]
    known = [(table["also_positive"], rows, places) for _, table, rows, places in knowing]
    return {
        "also_positive": parts.texts(known, parts.count, always=True),
        "query": parts.ragged("query"),
        "document": document,
        "chunk": parts.array(lambda table, rows, _: table["chunk"][rows]),
        "document_hash": parts.array(lambda table, rows, _: table["document_hash"][rows]),
        "chunks": parts.texts(chunks, total),
        "chunks_of_document": np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
    }
