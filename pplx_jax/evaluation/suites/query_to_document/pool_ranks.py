"""Ranks of relevant documents in several nested pools: counts the documents ahead of them, block by block."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pplx_jax.retrieval.exact_search import ranking_keys
from pplx_jax.retrieval.metrics import NOT_RETRIEVED

_QUERIES_AT_ONCE = 256


class Scores(Protocol):
    """Scores of queries for N documents: an array [Q, N], or rows that are computed when they are read."""

    def __getitem__(self, queries: slice, /) -> np.ndarray: ...


def pairs_by_query(query: np.ndarray) -> dict[int, np.ndarray]:
    """Returns, for each query that has pairs, their indices.

    Args:
        query: int64 [J], index of each pair's query.
    """
    order = np.argsort(query, kind="stable")
    queries, starts = np.unique(query[order], return_index=True)
    return dict(zip(queries.tolist(), np.split(order, starts[1:]), strict=True)) if len(query) else {}


class PoolRanks:
    """Counts, for every relevant (query, document) pair, the documents of each pool that rank ahead of it.

    A document is ahead if its score is higher, or equal with a greater id, as in trec_eval. So documents may come in
    any order. A document is never ahead of itself, even if its scores differ by rounding.
    """

    def __init__(
        self,
        query: np.ndarray,
        documents: Sequence[str] | np.ndarray,
        scores: np.ndarray,
        pools: int,
        excluded: Sequence[str] | np.ndarray | None = None,
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
        self._pairs = pairs_by_query(self._query)
        self._documents = _Names(documents)
        self._excluded = None if excluded is None else _Names(excluded)
        self._ahead = np.zeros((pools, len(self._query)), np.int64)

    def arguments(self) -> dict[str, np.ndarray]:
        """Returns what makes an equal object that has counted nothing."""
        pools, documents = np.array(len(self._ahead)), self._documents.all()
        excluded = {} if self._excluded is None else {"excluded": self._excluded.all()}
        return {"query": self._query, "documents": documents, "scores": self._scores, "pools": pools, **excluded}

    @property
    def ahead(self) -> np.ndarray:
        """The counts so far, int64 [S, J]. Those of an earlier pass over the same documents may be assigned."""
        return self._ahead

    @ahead.setter
    def ahead(self, counts: np.ndarray) -> None:
        self._ahead = np.array(counts)

    def add(self, ids: Sequence[str] | np.ndarray, scores: Scores, shells: np.ndarray) -> None:
        """Counts more documents.

        Args:
            ids: N ids, none of them added before.
            scores: float32 [Q, N] for all queries. They are read for some queries at a time.
            shells: int64 [N], the smallest pool of each document; S or more for none.
        """
        # A key orders by score, then by id within the block. The key of a pair is placed directly before the ids that
        # are greater than its document's.
        names = np.array(ids, str)
        order = np.argsort(names)
        places = np.empty(len(names), np.int64)
        places[order] = np.arange(len(names))[::-1]
        not_greater, columns = self._documents.found_in(names)
        own = ranking_keys(self._scores, len(names) - not_greater)
        removed = [columns] + ([] if self._excluded is None else [self._excluded.found_in(names)[1]])
        for begin in range(0, max(self._pairs, default=-1) + 1, _QUERIES_AT_ONCE):
            part = scores[begin : begin + _QUERIES_AT_ONCE]
            for query, row in enumerate(part, start=begin):
                if query in self._pairs:
                    pairs = self._pairs[query]
                    self._count(ranking_keys(row, places), own, pairs[np.argsort(own[pairs])], shells)
            for columns in removed:
                self._subtract(begin, part, places, own, columns, shells)

    def _count(self, keys: np.ndarray, own: np.ndarray, pairs: np.ndarray, shells: np.ndarray) -> None:
        """Counts the documents ahead of a query's pairs, which are in the order of their keys."""
        overtaken = np.searchsorted(own[pairs], keys)  # a document is ahead of this number of the first pairs
        for pool, ahead in enumerate(self._ahead):
            counts = np.bincount(overtaken[shells == pool], minlength=len(pairs) + 1)
            ahead[pairs] += np.cumsum(counts[::-1])[::-1][1:]

    def _subtract(
        self,
        begin: int,
        part: np.ndarray,
        places: np.ndarray,
        own: np.ndarray,
        columns: np.ndarray,
        shells: np.ndarray,
    ) -> None:
        """Subtracts one document per pair of the queries from `begin` on, if it is in the block and was counted."""
        row = self._query - begin
        pairs = np.flatnonzero((columns >= 0) & (row >= 0) & (row < len(part)))
        column = columns[pairs]
        counted = ranking_keys(part[row[pairs], column], places[column]) > own[pairs]
        inside = counted & (shells[column] < len(self._ahead))
        np.subtract.at(self._ahead, (shells[column[inside]], pairs[inside]), 1)

    def ranks(self) -> np.ndarray:
        """Returns int64 [S, J], the rank from 1 of every pair in every pool, or NOT_RETRIEVED."""
        return np.where(self._scores > -np.inf, 1 + np.cumsum(self._ahead, axis=0), NOT_RETRIEVED)


class _Names:
    """J names, sorted once, so that the names of a block are looked up in them and not they in every block."""

    def __init__(self, names: Sequence[str] | np.ndarray):
        self._sorted, self._inverse = np.unique(np.array(names, str), return_inverse=True)

    def all(self) -> np.ndarray:
        """Returns str [J]."""
        return self._sorted[self._inverse]

    def found_in(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up the ids of a block, which are unique.

        Returns:
            For each name, int64 [J]: the number of ids that are not greater, and the index of the equal id or -1.
        """
        if not len(self._sorted):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        place = np.searchsorted(self._sorted, block)
        not_greater = np.cumsum(np.bincount(place, minlength=len(self._sorted) + 1))[:-1]
        equal = np.flatnonzero(self._sorted[np.minimum(place, len(self._sorted) - 1)] == block)
        columns = np.full(len(self._sorted), -1)
        columns[place[equal]] = equal
        return not_greater[self._inverse], columns[self._inverse]
