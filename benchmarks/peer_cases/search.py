"""Search in INT8 vectors: our index (signs, then exact cosines), exact search, and FAISS alone.

FAISS has the same vectors, normalized: as float32 (exact), and as INT8 by its own scalar quantizer.
"""

import argparse
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peer_cases.subject import Subject
from peer_cases.turns import Different, chosen, measure, table_row

NAMES = ("ours_exact", "ours", "faiss_flat", "faiss_int8")
K = 10
# Smallest share of the exact first 10 that is found. Vectors of equal cosine may change places in float32.
_LEAST_SHARE = {"ours_exact": 1.0, "ours": 0.9, "faiss_flat": 0.99, "faiss_int8": 0.8}
_TOPICS_PER_VECTOR = 1 / 50


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the row of the one case."""
    from search_scale import write_embeddings

    from pplx_jax.retrieval.build_index import build_index

    pooled, queries = draw_vectors(options.vectors, options.queries, options.dims)
    write_embeddings(workdir / "embeddings", [pooled], len(pooled), options.dims)
    build_index(workdir / "embeddings", workdir / "index", engine="faiss")
    case = save_vectors(pooled, queries, workdir) | {"index": os.fspath(workdir / "index"), "threads": options.threads}
    found = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
    facts = {"vectors": options.vectors, "queries": options.queries, "dims": options.dims, "k": K}
    yield f"{options.vectors} vectors", table_row(found, facts, "queries")


def draw_vectors(count: int, queries: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors [count, dims] around topics, and queries near some of them, float32."""
    generator = np.random.default_rng(0)
    topics = generator.standard_normal((max(int(count * _TOPICS_PER_VECTOR), 1), dims), np.float32)
    pooled = topics[generator.integers(0, len(topics), count)] + generator.standard_normal((count, dims), np.float32)
    near = pooled[generator.choice(count, queries)]
    return pooled / 2, (near + generator.standard_normal(near.shape, np.float32)) / 2


def save_vectors(pooled: np.ndarray, queries: np.ndarray, workdir: pathlib.Path) -> dict[str, str]:
    """Writes them as INT8; returns the part of a case that names them."""
    from pplx_jax.kernels.quantization import quantize

    for name, vectors in (("documents", pooled), ("queries", queries)):
        np.save(workdir / f"{name}.npy", quantize(vectors, "int8"))
    return {"folder": os.fspath(workdir)}


def load_vectors(case: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns documents [N, D] and queries [Q, D], INT8."""
    documents, queries = (np.load(pathlib.Path(case["folder"]) / f"{name}.npy") for name in ("documents", "queries"))
    return documents, queries


def units(vectors: np.ndarray) -> np.ndarray:
    """Returns normalized float32 vectors."""
    floats = vectors.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-6)


class Ranking:
    """An implementation that ranks; subclasses define `ranked`, [Q, k] documents."""

    found: np.ndarray

    def __init__(self, name: str, case: Mapping[str, Any]):
        self._file = pathlib.Path(case["folder"]) / f"{type(self).__module__}_{name}.npy"

    def ranked(self) -> np.ndarray:
        raise NotImplementedError

    def run(self) -> None:
        self.found = self.ranked()

    def check(self) -> dict[str, str]:
        np.save(self._file, self.found)
        return {"found": os.fspath(self._file)}


def open_side(name: str, case: Mapping[str, Any]) -> Ranking:
    """Opens an implementation: one of `NAMES`."""
    return Ours(name, case) if name.startswith("ours") else Faiss(name, case, K)


class Ours(Ranking):
    def __init__(self, name: str, case: Mapping[str, Any]):
        from pplx_jax.retrieval.local.index_part import IndexPart
        from pplx_jax.retrieval.search_options import SearchOptions

        super().__init__(name, case)
        self._index, self._queries = IndexPart.load(case["index"]), load_vectors(case)[1]
        self._options = SearchOptions("numpy" if name == "ours_exact" else "faiss")

    def ranked(self):
        return self._index.nearest(self._queries, K, self._options)[0]


class Faiss(Ranking):
    def __init__(self, name: str, case: Mapping[str, Any], k: int):
        import faiss

        super().__init__(name, case)
        faiss.omp_set_num_threads(case["threads"])
        documents, self._queries = load_vectors(case)
        width, self._k = documents.shape[1], k
        if name == "faiss_int8":
            self._index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            self._index.train(units(documents))
        else:
            self._index = faiss.IndexFlatIP(width)
        self._index.add(units(documents))

    def ranked(self):
        return self._index.search(units(self._queries), self._k)[1]


def compare(exact: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the mean share of what exact search finds.

    Raises:
      Different: it is less than such a search is to find.
    """
    pairs = zip(*(np.load(each["found"]) for each in (exact, other)), strict=True)
    share = float(np.mean([len(np.intersect1d(one, two)) / len(one) for one, two in pairs]))
    if share < _LEAST_SHARE[name]:
        raise Different(f"{name}: finds {share:.3f} of what exact search finds, less than {_LEAST_SHARE[name]}")
    return {"share_of_exact": round(share, 4)}
