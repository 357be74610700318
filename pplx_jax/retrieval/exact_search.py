"""Exact search over quantized embeddings: reproducible similarities, and a top k with a total order.

Scores of int8 and binary embeddings are computed from exact integers. So equal documents get bit-identical scores, on
any machine and in any block. Ties are broken by id, descending, as in trec_eval. Scores of float embeddings are
computed in float64 and rounded to float32, so copies of a document get equal scores except with a probability of about
1e-8.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

# A float32 product of int8 vectors is exact if all sums are below 2**24, like 127 * 127 * 1024.
_EXACT_WIDTH = 1024
_SIGN_BIT = np.uint32(1 << 31)
_LOWER_HALF = np.uint64((1 << 32) - 1)
_ROWS_PER_BLOCK = 16_384
_ROWS_IN_CACHE = 1024  # as float32


class Vectors(Protocol):
    """Documents [N, d] that are read in ranges: an array, a memory map, or `ShardedVectors`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def similarity(queries: np.ndarray, documents: np.ndarray, packed: bool = False) -> np.ndarray:
    """Returns the cosine of every query with every document.

    Args:
        queries: [Q, d] float, or int8 from the quantizers "int8" and "binary"; of the same dtype as
            `documents`.
        documents: [N, d]. A zero vector has cosine 0 with everything.
        packed: whether both are uint8 [., d/8] with eight signs per byte. The result is then 1 - 2 * Hamming distance /
            d, which is the cosine of the +1/-1 vectors.

    Returns:
        float32 [Q, N].

    Raises:
        ValueError: the two differ in width or dtype, or `packed` disagrees with the dtype.
    """
    queries, documents = np.asarray(queries), np.asarray(documents)
    if queries.shape[1:] != documents.shape[1:] or queries.dtype != documents.dtype:
        raise ValueError(f"cannot compare {queries.dtype}{queries.shape} with {documents.dtype}{documents.shape}")
    if packed != (documents.dtype == np.uint8):
        raise ValueError(f"packed signs are uint8, other embeddings are not; got {documents.dtype}, packed={packed}")
    if packed:
        return _packed_similarity(queries, documents)
    # Squares and products of integers are exact in float64, so equal cosines are bit-identical.
    squares = np.outer(squared_norms(queries), squared_norms(documents))
    if documents.dtype == np.int8:
        products = _int8_products(queries, documents)
    else:
        # In float32, the last bits depend on the column's position in the matrix, and equal documents would differ.
        products = queries.astype(np.float64) @ documents.astype(np.float64).T
    return np.divide(products, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0).astype(np.float32)


def squared_norms(vectors: np.ndarray) -> np.ndarray:
    """Returns float64 [N]; exact for int8 [N, d] with d < 2**17."""
    sums = np.int32 if vectors.dtype == np.int8 else np.float64
    return np.einsum("nd,nd->n", vectors, vectors, dtype=sums).astype(np.float64)


def _int8_products(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns float64 [Q, N], exact integers, by float32 products of widths that cannot round."""
    products = np.zeros((len(queries), len(documents)))
    for begin in range(0, queries.shape[1], _EXACT_WIDTH):
        part = slice(begin, begin + _EXACT_WIDTH)
        some = queries[:, part].astype(np.float32)
        for row in range(0, len(documents), _ROWS_IN_CACHE):
            rows = slice(row, row + _ROWS_IN_CACHE)
            products[:, rows] += some @ documents[rows, part].astype(np.float32).T
    return products


def _packed_similarity(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    bits = 8 * documents.shape[1]
    scores = np.empty((len(queries), len(documents)), np.float32)
    for row, query in enumerate(queries):
        distance = np.bitwise_count(documents ^ query).sum(axis=1, dtype=np.int64)
        scores[row] = (bits - 2 * distance) / bits
    return scores


def top_k(
    queries: np.ndarray,
    documents: Vectors,
    places: np.ndarray,
    k: int,
    *,
    packed: bool = False,
    excluded: np.ndarray | None = None,
    rows_per_block: int = _ROWS_PER_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best documents of each query, best first, ties by `places` ascending.

    Documents are read in blocks, so they may be larger than memory.

    Args:
        queries: [Q, d]; see `similarity`.
        documents: [N, d].
        places: int64 [N], a permutation of 0..N-1; `metrics.tie_places(ids)` returns trec_eval's order.
        k: at least 1.
        packed: whether both are packed signs.
        excluded: bool [N], documents that are never hits.
        rows_per_block: number of documents compared at once.

    Returns:
        (documents int64 [Q, K], scores float32 [Q, K]) with K = min(k, candidates).

    Raises:
        ValueError: k is less than 1, or see `similarity`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    best = np.zeros((len(queries), 0), np.uint64)
    for begin in range(0, len(documents), rows_per_block):
        block = slice(begin, begin + rows_per_block)
        keys = ranking_keys(similarity(queries, documents[block], packed), places[block])
        if excluded is not None:
            keys = keys[:, ~excluded[block]]
        best = _greatest(np.concatenate([best, keys], axis=1), k)
    return _from_keys(best, places)


def rank_scores(scores: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best of given scores [Q, N]; see `top_k` for arguments and result."""
    return _from_keys(_greatest(ranking_keys(scores, places), k), places)


def rescore(
    queries: np.ndarray, candidates: np.ndarray, take: Callable[[np.ndarray], np.ndarray], places: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best among the candidates of each query, by exact similarity, in the order of `top_k`.

    Args:
        queries: [Q, d] int8 or float.
        candidates: int64 [Q, C], documents of each query in any order, -1 for none.
        take: returns the vectors [n, d] of documents int64 [n].
        places: int64 [N].
        k: at least 1.

    Returns:
        (documents int64 [Q, K], scores float32 [Q, K]) with K = min(k, C). Unused entries at the end are -1 and -inf.
    """
    width = min(k, candidates.shape[1])
    documents = np.full((len(queries), width), -1, np.int64)
    scores = np.full((len(queries), width), -np.inf, np.float32)
    for query, row in enumerate(candidates):
        found = np.sort(row[row >= 0])  # in disk order
        values = similarity(queries[query : query + 1], take(found))[0]
        best = np.lexsort((places[found], -values))[:width]
        documents[query, : len(best)], scores[query, : len(best)] = found[best], values[best]
    return documents, scores


def ranking_keys(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns uint64 keys of the shape of `scores` that sort by score, then by place descending.

    The upper half is the float32 score in a form that sorts like an integer, the lower half the place. The keys of a
    query are distinct, so a partial sort is exact.
    """
    bits = np.ascontiguousarray(scores + np.float32(0), np.float32).view(np.uint32)  # + 0 turns -0 into 0
    ordered = np.where(bits & _SIGN_BIT, ~bits, bits | _SIGN_BIT)
    return (ordered.astype(np.uint64) << np.uint64(32)) | (_LOWER_HALF - places.astype(np.uint64))


def _greatest(keys: np.ndarray, k: int) -> np.ndarray:
    return keys if keys.shape[1] <= k else np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]


def _from_keys(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns documents and scores, best first."""
    keys = np.sort(keys, axis=1)[:, ::-1]
    document_at = np.empty(len(places), np.int64)
    document_at[places] = np.arange(len(places))
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(ordered & _SIGN_BIT, ordered ^ _SIGN_BIT, ~ordered).view(np.float32)
    return document_at[(_LOWER_HALF - (keys & _LOWER_HALF)).astype(np.int64)], scores
