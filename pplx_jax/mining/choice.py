"""Which of the documents that rank high for a query become its hard negatives."""

import dataclasses
from collections.abc import Collection
from typing import Literal

import numpy as np

from pplx_jax.core.errors import BadInput, require

REASONS = ("positives", "above_ceiling", "lexical")  # why a document of the window is no negative


@dataclasses.dataclass(frozen=True)
class Mining:
    """Which documents become the hard negatives of a query. The paper publishes none of this; see the README.

    Attributes:
      negatives: K, of each query.
      first_rank: documents ranked before it (from 1) are left alone: many answer the query as well.
      last_rank: the end of the window, this rank included. Copies of a document have one rank.
      ceiling: a negative's cosine is at most this share of the positive's.
      margin: and at most the positive's less this.
      lexical_ceiling: a negative's BM25 score is at most this share of the positive's; 0 asks no BM25.
      search: "exact", or "approximate" by faiss.
      probes: cells that the approximate search looks in.
      examples: pairs that are mined, a seeded sample; 0 for all.
      part_size: queries, and documents, of one piece of work that is kept when the work is cut off.
      samples: queries that the report shows.
      seed: of the sample and of the choice within the window.
    """

    negatives: int = 7
    first_rank: int = 30
    last_rank: int = 100
    ceiling: float = 0.95
    margin: float = 0.0
    lexical_ceiling: float = 0.0
    search: Literal["exact", "approximate"] = "exact"
    probes: int = 32
    examples: int = 0
    part_size: int = 16384
    samples: int = 20
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.first_rank <= self.last_rank:
            raise BadInput(f"Mining: ranks {self.first_rank} to {self.last_rank} are no window; count from 1")
        if self.search not in ("exact", "approximate"):
            raise BadInput(f"Mining.search={self.search!r}; choose 'exact' or 'approximate'")
        if min(self.negatives, self.part_size, self.probes) < 1:
            raise BadInput("Mining: negatives, part_size and probes are 1 or more")
        ranks = self.last_rank - self.first_rank + 1
        require(self.negatives <= ranks, self, "negatives", f"at most the {ranks} ranks of the window")


def choose(
    mining: Mining,
    ranked: np.ndarray,
    scores: np.ndarray,
    *,
    answers: Collection[int],
    positive: float,
    own: int,
    lexical: np.ndarray | None,
    pair: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the negatives of one query.

    Args:
      mining: the choice.
      ranked: [R] documents, best first; -1 where the search found no more.
      scores: [R] cosines of the ranked.
      answers: documents that answer the query.
      positive: cosine of the query's own document.
      own: the query's own document.
      lexical: [N] BM25 scores of all documents; None where none is asked.
      pair: the query's row, by which the draw is seeded: parts of the work may be done anywhere.

    Returns:
      [K] places among the ranked, none where fewer than K are left; and how many of the window's documents were
      refused for each of `REASONS`, each counted by its first.
    """
    window = np.arange(mining.first_rank - 1, len(ranked))
    window = window[ranked[window] >= 0]
    candidates = ranked[window]
    allowed = np.ones((len(REASONS), len(window)), bool)
    allowed[0] = ~np.isin(candidates, list(answers))
    allowed[1] = scores[window] <= _ceiling(positive, mining)
    if lexical is not None:
        allowed[2] = lexical[candidates] <= mining.lexical_ceiling * lexical[own]
    passed = np.cumprod(np.vstack([np.ones(len(window), bool), allowed]), axis=0).astype(bool)
    refused = (passed[:-1] & ~passed[1:]).sum(axis=1)
    window = window[passed[-1]]
    if len(window) < mining.negatives:
        return window[:0], refused
    generator = np.random.default_rng((mining.seed, pair))
    return generator.choice(window, mining.negatives, replace=False), refused


def _ceiling(positive: float, mining: Mining) -> float:
    # Below zero the share is turned over: the ceiling stays under the positive.
    share = positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
    return min(share, positive - mining.margin) if mining.margin else share
