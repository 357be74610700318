"""Hits of an index of chunks: a hit a document, ranked and shown by its best chunk."""

import typing
from typing import Any

import numpy as np

if typing.TYPE_CHECKING:
    from pplx_jax.retrieval.index import Index, SearchOptions

CHUNKS_SHOWN = 3
_CHUNK_FIELDS = ("id", "score", "text", "chunk", "start", "end")
_GROWTH = 4


def grouped_hits(index: "Index", queries: np.ndarray, k: int, options: "SearchOptions") -> list[list[dict[str, Any]]]:
    """The k best documents of each query.

    Args:
        index: one of chunks.
        queries: [Q, width].
        k: documents wanted.
        options: how.

    Returns:
        For each query its hits, best first: those of `Index.hits` for the best chunk, with "document", "chunk" (its
        place), "start" and "end" (characters of the document, where `embed` cut it) and "chunks": the document's
        `CHUNKS_SHOWN` best chunks, that one included. A text that is no chunk is a document of its own and shows none.
    """
    return [
        [_with_chunks(index, hit, number, query) for hit, number in zip(index.hits(*best), best[0], strict=True)]
        for query, best in zip(queries, best_of_documents(index, queries, k, options), strict=True)
    ]


def best_of_documents(
    index: "Index", queries: np.ndarray, k: int, options: "SearchOptions"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query the best vector of each of its k best documents: (numbers [K], scores [K]), best first.

    A ranking of vectors begins with the best of the best document; where its head has vectors of fewer than k
    documents, a longer one is asked for.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
    waiting, width = np.arange(len(queries)), k
    while len(waiting):
        unfinished = []
        numbers, scores = index.nearest(queries[waiting], width, options)
        for query, row, values in zip(waiting, numbers, scores, strict=True):
            row = row[row >= 0]
            _, first = np.unique(index.documents[row], return_index=True)
            first = np.sort(first)[:k]
            found[query] = row[first], values[first]
            if len(first) < k and len(row) == width:
                unfinished.append(query)
        waiting, width = np.array(unfinished, np.int64), _GROWTH * width
    return found


def _with_chunks(index: "Index", hit: dict[str, Any], number: int, query: np.ndarray) -> dict[str, Any]:
    if "chunk" not in hit or "document" not in hit:
        return hit
    numbers, scores = index.chunks_of(index.documents[number], query)
    chunks = index.hits(numbers[:CHUNKS_SHOWN], scores[:CHUNKS_SHOWN])
    return hit | {"chunks": [{name: chunk[name] for name in _CHUNK_FIELDS if name in chunk} for chunk in chunks]}
