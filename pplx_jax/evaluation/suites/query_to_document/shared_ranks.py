"""Counts the documents ahead of relevant ones (`PoolRanks`) on all processes of a job.

Process 0 reads the corpus and deals its blocks in turn. Each process counts in its own blocks, and the counts are added
up. They are whole numbers, and the scores of INT8 vectors and signs are exact, so the sums do not depend on the number
of processes.
"""

import io
import json
from typing import Any, Self

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.suites.query_to_document.corpus_embeddings import Block, joined
from pplx_jax.evaluation.suites.query_to_document.pool_ranks import PoolRanks
from pplx_jax.evaluation.suites.query_to_document.query_vectors import BlockScores, QueryVectors
from pplx_jax.inference.lead import called_by_others
from pplx_jax.parallel.gather_rows import broadcast_bytes, sum_counts
from pplx_jax.parallel.shares import own_share

_VECTORS_AT_ONCE = 16_384


class SharedRanks:
    """Counts on this process, which leads, and on the others, if there are any. A context manager.

    Args:
        counted: has the pairs, and counts of earlier documents.
        queries: their vectors.
    """

    def __init__(self, counted: PoolRanks, queries: QueryVectors):
        self._own = _Own(counted, queries)
        self._counted, self._queries = counted, queries
        self._dealt, self._processes = 0, 1

    def __enter__(self) -> Self:
        if called_by_others(follow):
            _, self._processes = own_share()
            queries = {f"query_{name}": value for name, value in vars(self._queries).items()}
            broadcast_bytes(_packed(**queries, **self._counted.arguments()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._processes > 1 and (kind is None or issubclass(kind, BadInput)):  # who raises BadInput may go on
            _tell(do="end")

    def add(self, block: Block, shells: np.ndarray) -> None:
        """Counts a block, now or together with later ones.

        Args:
            block: documents that were not added before.
            shells: int64 [N], the smallest pool of each document.
        """
        self._dealt += 1
        if owner := self._dealt % self._processes:
            _tell(do="take", process=owner)
            broadcast_bytes(
                _packed(
                    ids=np.array(block.ids, str),
                    vectors=block.vectors,
                    starts=block.starts,
                    empty=block.empty,
                    shells=shells,
                )
            )
            return
        self._own.take(block, shells)
        if self._own.vectors >= _VECTORS_AT_ONCE:
            self._count()

    def total(self) -> np.ndarray:
        """Returns the counts of all blocks that were added, int64 [S, J]. They are then in `counted` too."""
        self._count()
        if self._processes > 1:
            _tell(do="sum")
            self._counted.ahead = sum_counts(self._counted.ahead)
        return self._counted.ahead

    def _count(self) -> None:
        """Makes all processes count in the blocks that they have, at the same time."""
        if self._processes > 1:
            _tell(do="count")
        self._own.count()


class _Own:
    """The blocks of one process that are not counted yet."""

    def __init__(self, counted: PoolRanks, queries: QueryVectors):
        self._counted, self._queries = counted, queries
        self._held: list[tuple[Block, np.ndarray]] = []

    @property
    def vectors(self) -> int:
        return sum(len(block.vectors) for block, _ in self._held)

    def take(self, block: Block, shells: np.ndarray) -> None:
        self._held.append((block, shells))

    def count(self) -> None:
        """Counts in blocks of a size for which little memory and little time per query are needed."""
        if not self._held:
            return
        blocks, shells = zip(*self._held, strict=True)
        whole, of_whole = (blocks[0], shells[0]) if len(blocks) == 1 else (joined(blocks), np.concatenate(shells))
        self._held = []
        for part in whole.cut(_VECTORS_AT_ONCE):
            block = whole[part]
            self._counted.add(block.ids, BlockScores(self._queries, block), of_whole[part])


def follow() -> None:
    """Does what process 0 tells, on every other process, until it ends. Collective."""
    index, _ = own_share()
    given = _unpacked(broadcast_bytes(b""))
    queries = QueryVectors(given["query_vectors"], given["query_empty"], bool(given["query_packed"]))
    pairs = (given["query"], given["documents"], given["scores"])
    counted = PoolRanks(*pairs, int(given["pools"]), given.get("excluded"))
    own = _Own(counted, queries)
    while (told := json.loads(broadcast_bytes(b"")))["do"] != "end":
        if told["do"] == "take":
            data = broadcast_bytes(b"")
            if told["process"] == index:
                block = _unpacked(data)
                shells = block.pop("shells")
                own.take(Block(**block), shells)
        elif told["do"] == "count":
            own.count()
        else:
            sum_counts(counted.ahead)
            counted.ahead = np.zeros_like(counted.ahead)


def _tell(**told: Any) -> None:
    broadcast_bytes(json.dumps(told).encode())


def _packed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(stored)
