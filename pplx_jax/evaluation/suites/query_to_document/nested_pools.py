"""Nested pools of a corpus: each is part of the next larger one, so one pass gives the metrics of all sizes.

Every pool contains all relevant documents. It is filled with the documents whose ids have the smallest hashes. So a
pool depends only on the ids and the seed, not on the order of the corpus.
"""

import array
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput


class NestedPools:
    """Pools of one corpus.

    Attributes:
        sizes: int [S], number of documents in each pool, ascending.
        documents: number of documents in the corpus.
    """

    def __init__(
        self,
        ids: Iterable[str],
        relevant: frozenset[str],
        sizes: Sequence[int] | None,
        usual_sizes: Sequence[int] = (),
        *,
        seed: int = 0,
    ):
        """Hashes all ids once. Needs 8 bytes of memory per document.

        Args:
            ids: of the corpus.
            relevant: ids that are in every pool.
            sizes: number of documents in the pools, in any order. None for those of `usual_sizes` that are smaller than
                the corpus, and the whole corpus.
            usual_sizes: see `sizes`.
            seed: of the hash; another seed samples other documents.

        Raises:
            BadInput: an id occurs twice, a relevant document is not in the corpus, or a size is larger than the corpus
                or smaller than the number of relevant documents.
        """
        self._relevant, self._seed = relevant, seed
        found, twice = set(), False
        hashes = array.array("Q")
        for identity in ids:
            if identity in relevant:
                twice = twice or identity in found
                found.add(identity)
            else:
                hashes.append(self._hash(identity))
        ordered = np.sort(np.array(hashes, np.uint64))
        if twice or (ordered[1:] == ordered[:-1]).any():
            raise BadInput("an id occurs twice in the corpus; make ids unique")
        missing = relevant - found
        if missing:
            raise BadInput(
                f"{len(missing)} relevant documents are not in the corpus, such as {min(missing)!r}; add them"
            )
        total = self.documents = len(found) + len(hashes)
        if sizes is None:
            sizes = [*(size for size in usual_sizes if len(relevant) <= size < total), total]
        self.sizes = tuple(sorted(set(sizes)))
        for size in self.sizes:
            if not len(relevant) <= size <= total:
                raise BadInput(
                    f"pool size {size}: the corpus has {total} documents, {len(relevant)} of them relevant; "
                    "give a size between these numbers"
                )
        self._last = np.array(
            [ordered[size - len(relevant) - 1] if size > len(relevant) else 0 for size in self.sizes], np.uint64
        )

    def shells(self, ids: Sequence[str]) -> np.ndarray:
        """Returns int64 [len(ids)], the smallest pool of each document, counted from 0; S if it is in none."""
        hashes = np.array([0 if identity in self._relevant else self._hash(identity) for identity in ids], np.uint64)
        return np.searchsorted(self._last, hashes)

    def _hash(self, identity: str) -> int:
        digest = hashlib.blake2b(identity.encode(), digest_size=8, key=self._seed.to_bytes(8, "big"))
        return int.from_bytes(digest.digest(), "big") or 1  # 0 is reserved for relevant documents
