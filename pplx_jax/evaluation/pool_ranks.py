"""Ranks of relevant documents in several nested pools at once, by counting what is ahead of them block after block."""

from collections.abc import Sequence

import numpy as np

_PAIRS_PER_BLOCK = 512


class PoolRanks:
    """Counts, for every relevant (query, document) pair, the documents of each pool that rank ahead of it.

    Ahead is who scores higher, or the same with the greater id, as trec_eval breaks ties; so nothing is sorted, and
    documents may come in any order. A document is never ahead of itself, even if its score differs by a rounding.
    """

    def __init__(
        self,
        query: np.ndarray,
        documents: Sequence[str],
        scores: np.ndarray,
        pools: int,
        excluded: Sequence[str] | None = None,
    ):
        """Starts with nothing ahead of anyone.

        Args:
            query: int64 [J], the row of each pair's query.
            documents: J ids of the relevant documents.
            scores: float32 [J], their own.
            pools: S.
            excluded: J ids that do not count, such as the query's own where queries are the corpus.
        """
        self._query, self._own = np.asarray(query), np.asarray(scores, np.float32)
        self._documents = np.array(documents, str)
        self._excluded = None if excluded is None else np.array(excluded, str)
        self._ahead = np.zeros((pools, len(self._query)), np.int64)

    def add(self, ids: Sequence[str], scores: np.ndarray, shells: np.ndarray) -> None:
        """Counts more documents.

        Args:
            ids: N ids, none seen before.
            scores: float32 [Q, N] of all queries.
            shells: int64 [N], the smallest pool that each is in; S or more for none.
        """
        names = np.array(ids, str)
        order = np.argsort(names)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        first, last = (np.searchsorted(names[order], self._documents, side) for side in ("left", "right"))
        own_query = np.zeros((2, len(self._query)), np.int64)
        if self._excluded is not None:
            own_query[:] = [np.searchsorted(names[order], self._excluded, side) for side in ("left", "right")]
        member = (shells[:, None] == np.arange(len(self._ahead))).astype(np.float32)
        for begin in range(0, len(self._query), _PAIRS_PER_BLOCK):
            pairs = slice(begin, begin + _PAIRS_PER_BLOCK)
            rows, own = scores[self._query[pairs]], self._own[pairs, None]
            higher = (rows > own) & ((place < first[pairs, None]) | (place >= last[pairs, None]))
            ahead = higher | ((rows == own) & (place >= last[pairs, None]))
            ahead &= (place < own_query[0, pairs, None]) | (place >= own_query[1, pairs, None])
            self._ahead[:, pairs] += (ahead.astype(np.float32) @ member).T.astype(np.int64)  # exact below 2**24

    def ranks(self) -> np.ndarray:
        """int64 [S, J]: rank from 1 of every pair in every pool."""
        return 1 + np.cumsum(self._ahead, axis=0)
