"""Search in an index of chunks: the best documents, each represented by its best chunk."""

from collections.abc import Callable

import numpy as np

# Maps queries [Q, width] and a number k to the numbers and scores [Q, K] of the k best vectors; number -1 for none.
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
_GROWTH = 4


def best_of_documents(
    nearest: Nearest, documents: np.ndarray, queries: np.ndarray, k: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns, for each query, the best vector of each of its k best documents.

    The best vectors of a query contain the best one of the best documents. If they belong to fewer than k documents,
    more vectors are requested.

    Args:
        nearest: searches the vectors.
        documents: int64 [N], the document of each vector.
        queries: [Q, width].
        k: number of documents.

    Returns:
        (numbers of vectors [K], scores [K]) for each query, best first.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
    waiting, width = np.arange(len(queries)), k
    while len(waiting):
        unfinished = []
        numbers, scores = nearest(queries[waiting], width)
        for query, row, values in zip(waiting, numbers, scores, strict=True):
            row = row[row >= 0]
            _, first = np.unique(documents[row], return_index=True)
            first = np.sort(first)[:k]
            found[query] = row[first], values[first]
            if len(first) < k and len(row) == width:
                unfinished.append(query)
        waiting, width = np.array(unfinished, np.int64), _GROWTH * width
    return found
