"""How an index is searched, for every engine."""

import dataclasses
from typing import Literal, get_args

from pplx_jax.core.errors import BadInput

Engine = Literal["faiss", "numpy", "jax", "vespa", "postgres"]


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        engine: of an index folder, "faiss" finds candidates by the signs of the vectors and ranks them by exact cosine,
            "numpy" is exact, on the CPU, and "jax" is exact with equal results, on all JAX devices. The index of a
            server has one engine. None for the engine of the index.
        candidates: number of candidates that are ranked again per requested hit, unless the search is exact.
        least_candidates: minimum number of candidates, because a small number misses more hits.
        probes: of faiss, number of inverted lists that a query reads; None for a quarter.
    """

    engine: Engine | None = None
    candidates: int = 40
    least_candidates: int = 1000
    probes: int | None = None

    def __post_init__(self):
        if self.engine not in (None, *get_args(Engine)):
            raise BadInput(f"engine={self.engine!r}: give one of {', '.join(get_args(Engine))}")
        if self.candidates < 1:
            raise BadInput(f"candidates={self.candidates}: give at least 1")

    def count(self, k: int) -> int:
        """Returns the number of candidates for k hits."""
        return max(k * self.candidates, self.least_candidates)
