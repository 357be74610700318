"""Ranks of relevant documents in several nested pools: counts the documents ahead of them, block by block."""

from collections.abc import Sequence

import numpy as np

from pplx_jax.retrieval.metrics import NOT_RETRIEVED
from pplx_jax.retrieval.search import ranking_keys


class PoolRanks:
    """Counts, for every relevant (query, document) pair, the documents of each pool that rank ahead of it.

    A document is ahead if its score is higher, or equal with a greater id, as in trec_eval. So documents may come in
    any order. A document is never ahead of itself, even if its scores differ by rounding.
    """

    def __init__(
        self,
        query: np.ndarray,
        documents: Sequence[str],
        scores: np.ndarray,
        pools: int,
        excluded: Sequence[str] | None = None,
    ):
        """Starts with all counts at 0.

        Args:
            query: int64 [J], index of each pair's query.
            documents: J ids of the relevant documents.
            scores: float32 [J], scores of these documents; -inf for one that is not retrieved.
            pools: number of pools S.
            excluded: J ids that do not count, such as the query itself if the corpus is the queries.
        """
        self._query, self._scores = np.asarray(query), np.asarray(scores, np.float32)
        self._documents = np.array(documents, str)
        self._excluded = None if excluded is None else np.array(excluded, str)
        self._ahead = np.zeros((pools, len(self._query)), np.int64)

    @property
    def ahead(self) -> np.ndarray:
        """The counts so far, int64 [S, J]. Those of an earlier pass over the same documents may be assigned."""
        return self._ahead

    @ahead.setter
    def ahead(self, counts: np.ndarray) -> None:
        self._ahead = np.array(counts)

    def add(self, ids: Sequence[str], scores: np.ndarray, shells: np.ndarray) -> None:
        """Counts more documents.

        Args:
            ids: N ids, none of them added before.
            scores: float32 [Q, N] for all queries.
            shells: int64 [N], the smallest pool of each document; S or more for none.
        """
        # A key orders by score, then by id within the block. The key of a pair is placed directly before the ids that
        # are greater than its document's.
        names = np.array(ids, str)
        order = np.argsort(names)
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(1, len(names) + 1)
        own_rank = np.searchsorted(names[order], self._documents, "right")
        own = ranking_keys(self._scores, len(names) - own_rank)
        for query in np.unique(self._query):
            pairs = np.flatnonzero(self._query == query)
            pairs = pairs[np.argsort(own[pairs])]
            keys = ranking_keys(scores[query], len(names) - rank)
            # A document is ahead of the first `overtaken` of the query's sorted pairs.
            overtaken = np.searchsorted(own[pairs], keys)
            for pool, ahead in enumerate(self._ahead):
                counts = np.bincount(overtaken[shells == pool], minlength=len(pairs) + 1)
                ahead[pairs] += np.cumsum(counts[::-1])[::-1][1:]
        for removed in (self._documents, self._excluded):
            if removed is not None:
                self._subtract(names[order], order, removed, own, scores, len(names) - rank, shells)

    def _subtract(self, ordered_names, order, removed, own, scores, places, shells) -> None:
        """Subtracts one document per pair, if it is in the block and was counted."""
        found = np.searchsorted(ordered_names, removed)
        present = np.flatnonzero(ordered_names[np.minimum(found, len(order) - 1)] == removed)
        column = order[found[present]]
        counted = ranking_keys(scores[self._query[present], column], places[column]) > own[present]
        inside = counted & (shells[column] < len(self._ahead))
        np.subtract.at(self._ahead, (shells[column[inside]], present[inside]), 1)

    def ranks(self) -> np.ndarray:
        """Returns int64 [S, J], the rank from 1 of every pair in every pool, or NOT_RETRIEVED."""
        return np.where(self._scores > -np.inf, 1 + np.cumsum(self._ahead, axis=0), NOT_RETRIEVED)
