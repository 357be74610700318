"""The search of `mine`, which compares every query with every document, and FAISS alone."""

import argparse
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peer_cases import search
from peer_cases.subject import Subject
from peer_cases.turns import chosen, measure, table_row

NAMES = ("ours", "faiss_flat")
K = 100
compare = search.compare


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the row of the one case."""
    vectors = search.draw_vectors(options.vectors, options.queries, options.dims)
    case = search.save_vectors(*vectors, workdir) | {"threads": options.threads}
    found = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
    facts = {"vectors": options.vectors, "queries": options.queries, "dims": options.dims, "k": K}
    yield f"{options.vectors} vectors, exact", table_row(found, facts, "queries")


def open_side(name: str, case: Mapping[str, Any]) -> search.Ranking:
    """Opens an implementation: one of `NAMES`."""
    return Ours(name, case) if name == "ours" else search.Faiss(name, case, K)


class Ours(search.Ranking):
    def __init__(self, name: str, case: Mapping[str, Any]):
        from pplx_jax.mining.search import exact_search

        super().__init__(name, case)
        documents, self._queries = search.load_vectors(case)
        self._search = exact_search(documents)

    def ranked(self) -> np.ndarray:
        return self._search(self._queries, K)[1]
