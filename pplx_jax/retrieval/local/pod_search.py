"""Exact search on all devices of all processes of a job.

Each process searches an equal share of the rows on its own devices (`device_search`). Its k best of every query, with
their exact scores, go to all processes, which merge them in the order of `exact_search.top_k`. So the result equals
that of one process bit for bit, and 12 k bytes per query and process are sent, whatever the number of vectors.
"""

from typing import Any

import numpy as np

from pplx_jax.parallel.gather_rows import gather_rows
from pplx_jax.parallel.shares import own_share
from pplx_jax.retrieval.local.device_search import DeviceSearch
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors


class PodSearch:
    """Searches vectors with all processes. A single process searches alone.

    Args:
        vectors: int8 [N, d], which every process can read. Each reads its own rows, and those of hits.
        places: int64 [N], the order of ties; see `exact_search.top_k`.
        excluded: bool [N], documents that are never hits.
        **options: of `DeviceSearch`.

    Raises:
        BadInput: the rows of a process exceed int32.
    """

    def __init__(self, vectors: ShardedVectors, places: np.ndarray, excluded: np.ndarray, **options: Any):
        index, processes = own_share()
        self._begin, end = (len(vectors) * number // processes for number in (index, index + 1))
        own = slice(self._begin, end)
        self._places, self._processes = places, processes
        self._count = int(np.count_nonzero(~excluded))
        self._search = (
            DeviceSearch(vectors.range(self._begin, end), places[own], excluded[own], **options)
            if end > self._begin
            else None
        )

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of int8 queries [Q, d], bit for bit as `exact_search.top_k` does. Collective.

        All processes must give the same queries and the same k.
        """
        k = min(k, self._count)
        documents = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if self._search is not None:
            found, values = self._search.top_k(queries, k)
            documents[:, : found.shape[1]], scores[:, : found.shape[1]] = found + self._begin, values
        if self._processes == 1:
            return documents, scores
        packed = np.concatenate([documents.view(np.int32), scores.view(np.int32)], axis=1)
        parts = gather_rows(packed, [len(queries)] * self._processes)
        documents = np.concatenate([np.ascontiguousarray(part[:, : 2 * k]).view(np.int64) for part in parts], axis=1)
        scores = np.concatenate([np.ascontiguousarray(part[:, 2 * k :]).view(np.float32) for part in parts], axis=1)
        best = np.lexsort((self._places[documents], -scores), axis=1)[:, :k]
        return np.take_along_axis(documents, best, axis=1), np.take_along_axis(scores, best, axis=1)
