"""Chooses a query's hard negatives among the documents that rank high for it."""

import dataclasses
from collections.abc import Collection
from typing import Literal

import numpy as np

from pplx_jax.core.errors import BadInput, require

REASONS = ("positives", "above_ceiling")  # why a document in the window is not a negative


@dataclasses.dataclass(frozen=True)
class Mining:
    """The rule for hard negatives. The paper does not publish these values.

    Attributes:
      negatives: K, number of negatives per query.
      first_rank: first rank of the window, from 1. Documents before it are not used, because many answer the query too.
      last_rank: last rank of the window. Copies of a document share one rank.
      ceiling: a negative's cosine is at most this fraction of the positive's.
      margin: a negative's cosine is at most the positive's minus this; 0 for no margin.
      search: "exact", or "approximate" with faiss.
      probes: number of cells that the approximate search reads.
      examples: number of pairs to mine, a seeded sample; 0 for all.
      part_size: number of queries or documents in one part of the work. Finished parts survive an interruption.
      samples: number of queries in the report.
      seed: of the sample and of the choice within the window.
    """

    negatives: int = 7
    first_rank: int = 30
    last_rank: int = 100
    ceiling: float = 0.95
    margin: float = 0.0
    search: Literal["exact", "approximate"] = "exact"
    probes: int = 32
    examples: int = 0
    part_size: int = 16384
    samples: int = 20
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.first_rank <= self.last_rank:
            raise BadInput(
                f"Mining: first_rank={self.first_rank}, last_rank={self.last_rank}; set 1 <= first_rank <= last_rank"
            )
        if self.search not in ("exact", "approximate"):
            raise BadInput(f"Mining.search={self.search!r}; set it to 'exact' or 'approximate'")
        if min(self.negatives, self.part_size, self.probes) < 1:
            raise BadInput("Mining: set negatives, part_size and probes to 1 or more")
        ranks = self.last_rank - self.first_rank + 1
        require(self.negatives <= ranks, self, "negatives", f"at most the {ranks} ranks of the window")


def choose(
    mining: Mining,
    ranked: np.ndarray,
    scores: np.ndarray,
    *,
    answers: Collection[int],
    positive: float,
    pair: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the negatives of one query.

    Args:
      mining: the rule.
      ranked: [R] documents, best first; -1 if the search found fewer.
      scores: [R] cosines of the ranked documents.
      answers: documents that answer the query.
      positive: cosine of the query's own document.
      pair: index of the query. It seeds the draw, so the result does not depend on the order of the parts.

    Returns:
      Positions [K] of the negatives in `ranked`, or [0] if fewer than K documents are left; and for each of `REASONS`
      the number of documents in the window that were refused. A document counts for its first reason only.
    """
    window = np.arange(mining.first_rank - 1, len(ranked))
    window = window[ranked[window] >= 0]
    candidates = ranked[window]
    allowed = np.ones((len(REASONS), len(window)), bool)
    allowed[0] = ~np.isin(candidates, list(answers))
    allowed[1] = scores[window] <= _ceiling(positive, mining)
    passed = np.cumprod(np.vstack([np.ones(len(window), bool), allowed]), axis=0).astype(bool)
    refused = (passed[:-1] & ~passed[1:]).sum(axis=1)
    window = window[passed[-1]]
    if len(window) < mining.negatives:
        return window[:0], refused
    generator = np.random.default_rng((mining.seed, pair))
    return generator.choice(window, mining.negatives, replace=False), refused


def _ceiling(positive: float, mining: Mining) -> float:
    # For a negative cosine, divide instead of multiply, so that the ceiling stays below the positive.
    share = positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
    return min(share, positive - mining.margin) if mining.margin else share
