"""Samples of retrieval sets. A draw depends on the seed and a name alone, so other draws never change it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from pplx_jax.data.io.beir import RetrievalSet


def draw(seed: int, *names: object) -> float:
    """Returns a number in [0, 1) that depends on the seed and the names only."""
    digest = hashlib.blake2b(repr((seed, *map(str, names))).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def passages_of_parents(data: RetrievalSet) -> Iterator[tuple[str, list[int]]]:
    """Yields (parent, its passages in order), with parents in the order of the set."""
    members: dict[str, list[int]] = {}
    for row, parent in enumerate(data.parents):
        members.setdefault(parent, []).append(row)
    for parent, passages in members.items():
        yield parent, sorted(passages, key=lambda row: (data.chunks[row], row))


def restricted(data: RetrievalSet, documents: Iterable[int], queries: Callable[[str], bool]) -> RetrievalSet:
    """Returns the set of some passages, with the queries whose judged passages are all among them.

    Args:
        data: the set.
        documents: indices of the passages to keep.
        queries: whether to keep a query, given its id.
    """
    rows = sorted(documents)
    names = {data.document_ids[row] for row in rows}
    lost = set(data.document_ids) - names
    kept = [place for place, name in enumerate(data.query_ids) if queries(name) and lost.isdisjoint(data.qrels[name])]
    query_ids = [data.query_ids[place] for place in kept]
    return RetrievalSet(
        document_ids=[data.document_ids[row] for row in rows],
        documents=[data.documents[row] for row in rows],
        parents=[data.parents[row] for row in rows],
        chunks=[data.chunks[row] for row in rows],
        query_ids=query_ids,
        queries=[data.queries[place] for place in kept],
        qrels={name: data.qrels[name] for name in query_ids},
    )


def sampled(data: RetrievalSet, most_documents: int, most_queries: int, seed: int) -> RetrievalSet:
    """Returns a sample of whole parents and of their queries. Parents are drawn by the text of their first passage.

    Args:
        data: the set.
        most_documents: number of passages, rounded up to the end of a parent; 0 for all.
        most_queries: number of queries; 0 for all.
        seed: seed of both draws.
    """
    parents = sorted(passages_of_parents(data), key=lambda item: draw(seed, "parent", data.documents[item[1][0]]))
    rows: list[int] = []
    for _, passages in parents:
        if most_documents and len(rows) >= most_documents:
            break
        rows += passages
    within = restricted(data, rows, lambda name: True)
    if not most_queries or len(within.query_ids) <= most_queries:
        return within
    chosen = set(sorted(within.query_ids, key=lambda name: draw(seed, "query", name))[:most_queries])
    return restricted(within, range(len(within.document_ids)), chosen.__contains__)


def around_queries(data: RetrievalSet, most_queries: int, most_documents: int, seed: int) -> RetrievalSet:
    """Returns a sample of the queries, with all parents of their judged passages and a sample of the other parents.

    Unlike `sampled`, it keeps as many queries as asked for, however large the set is. A smaller collection is easier to
    search, so scores are higher than those of the whole set.

    Args:
        data: the set.
        most_queries: number of queries; 0 for all.
        most_documents: number of passages, rounded up to the end of a parent; the judged parents come first and are all
            kept. 0 for all.
        seed: seed of both draws.
    """
    queries = sorted(data.query_ids, key=lambda name: draw(seed, "query", name))[: most_queries or None]
    parent_of = dict(zip(data.document_ids, data.parents, strict=True))
    judged = {parent_of[name] for query in queries for name in data.qrels[query] if name in parent_of}
    rows: list[int] = []
    for parent, passages in sorted(
        passages_of_parents(data), key=lambda item: (item[0] not in judged, draw(seed, "parent", item[0]))
    ):
        if parent not in judged and most_documents and len(rows) >= most_documents:
            break
        rows += passages
    return restricted(data, rows, set(queries).__contains__)
