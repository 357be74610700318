"""Ranks of relevant documents in several nested pools at once, by counting what is ahead of them block after block."""

from collections.abc import Sequence

import numpy as np

from pplx_jax.retrieval.search import ranking_keys


class PoolRanks:
    """Counts, for every relevant (query, document) pair, the documents of each pool that rank ahead of it.

    Ahead is who scores higher, or the same with the greater id, as trec_eval breaks ties; so documents may come in any
    order. A document is never ahead of itself, even if its score differs by a rounding.
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
        self._query, self._scores = np.asarray(query), np.asarray(scores, np.float32)
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
        # A key orders by score, then by id among those of the block; a pair's own has the place after which ids are
        # greater than its document's.
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
            # A document is ahead of the first so many of the query's pairs.
            overtaken = np.searchsorted(own[pairs], keys)
            for pool, ahead in enumerate(self._ahead):
                counts = np.bincount(overtaken[shells == pool], minlength=len(pairs) + 1)
                ahead[pairs] += np.cumsum(counts[::-1])[::-1][1:]
        for unwanted in (self._documents, self._excluded):
            if unwanted is not None:
                self._take_back(names[order], order, unwanted, own, scores, len(names) - rank, shells)

    def _take_back(self, ordered_names, order, unwanted, own, scores, places, shells) -> None:
        """Uncounts one document a pair, where it is in the block and was counted."""
        found = np.searchsorted(ordered_names, unwanted)
        there = np.flatnonzero(ordered_names[np.minimum(found, len(order) - 1)] == unwanted)
        column = order[found[there]]
        counted = ranking_keys(scores[self._query[there], column], places[column]) > own[there]
        inside = counted & (shells[column] < len(self._ahead))
        np.subtract.at(self._ahead, (shells[column[inside]], there[inside]), 1)

    def ranks(self) -> np.ndarray:
        """int64 [S, J]: rank from 1 of every pair in every pool."""
        return 1 + np.cumsum(self._ahead, axis=0)
