"""The vectors of the queries, and their scores for a block of documents."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pplx_jax.evaluation.suites.query_to_document.corpus_embeddings import Block
from pplx_jax.evaluation.suites.query_to_document.pool_ranks import pairs_by_query
from pplx_jax.retrieval.exact_search import similarity


@dataclasses.dataclass(frozen=True)
class QueryVectors:
    """Quantized queries.

    Attributes:
        vectors: [Q, width].
        empty: bool [Q], whether a query is an empty text, which retrieves nothing.
        packed: whether the vectors are packed signs.
    """

    vectors: np.ndarray
    empty: np.ndarray
    packed: bool

    def scores(self, block: Block, queries: slice | np.ndarray) -> np.ndarray:
        """Returns float32 [number of these queries, N], the scores of the documents of a block."""
        found = block.document_scores(similarity(self.vectors[queries], block.vectors, self.packed))
        return np.where(self.empty[queries][:, None], np.float32(-np.inf), found)

    def scores_of_pairs(self, block: Block, query: np.ndarray, documents: Sequence[str]) -> np.ndarray:
        """Returns float32 [J], the score of each pair of a query and a document of the block.

        Args:
            block: contains all these documents.
            query: int64 [J], index of each pair's query.
            documents: J ids.
        """
        place = {name: index for index, name in enumerate(block.ids)}
        places = np.array([place[document] for document in documents], np.int64)
        found = np.empty(len(places), np.float32)
        for one, pairs in pairs_by_query(query).items():
            found[pairs] = self.scores(block.taken(places[pairs]), np.array([one]))[0]
        return found


@dataclasses.dataclass(frozen=True)
class BlockScores:
    """The scores of a block, computed for the queries that are asked for: `scores[slice]` for `PoolRanks.add`."""

    queries: QueryVectors
    block: Block

    def __getitem__(self, queries: slice) -> np.ndarray:
        return self.queries.scores(self.block, queries)
