"""Finds the nearest documents of each query: exact search over all, or approximate search in the nearest cells."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.objectives.similarity import normalize
from pplx_jax.retrieval.local.sign_search import import_faiss

_DOCUMENTS_PER_BLOCK = 65536
_ITERATIONS_SEED = 1234

# (queries [Q, D] int8, k) -> (cosines [Q, k] descending, document indices [Q, k], -1 for none).
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def exact_search(documents: np.ndarray) -> Search:
    """Returns a search that compares every query with every document, in blocks. The earlier document wins ties.

    Args:
      documents: [N, D] int8.
    """
    blocks = [
        (start, jnp.asarray(documents[start : start + _DOCUMENTS_PER_BLOCK]))
        for start in range(0, len(documents), _DOCUMENTS_PER_BLOCK)
    ]

    def search(queries: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        scores = jnp.zeros((len(queries), 0), jnp.float32)
        places = jnp.zeros((len(queries), 0), jnp.int32)
        for start, block in blocks:
            scores, places = _best(jnp.asarray(queries), block, start, scores, places, most)
        return np.asarray(scores), np.asarray(places)

    return search


@functools.partial(jax.jit, static_argnums=5)
def _best(queries, block, start, scores, places, most):
    """Merges the best so far with a block. Earlier documents win ties."""
    found = jnp.einsum("qd,nd->qn", normalize(queries), normalize(block), precision=jax.lax.Precision.HIGHEST)
    here = jnp.broadcast_to(start + jnp.arange(block.shape[0], dtype=jnp.int32), found.shape)
    scores, places = jnp.concatenate([scores, found], axis=1), jnp.concatenate([places, here], axis=1)
    scores, order = jax.lax.top_k(scores, min(most, scores.shape[1]))
    return scores, jnp.take_along_axis(places, order, axis=1)


def approximate_search(documents: np.ndarray, probes: int) -> Search:
    """Returns a search in the `probes` nearest of about 4 sqrt(N) cells (faiss's IVF index; arXiv 1702.08734).

    Args:
      documents: [N, D] int8.
      probes: number of cells. More cells increase recall and time.

    Raises:
      BadInput: faiss is not installed.
    """
    faiss = import_faiss()
    units, width = _units(documents), documents.shape[1]
    cells = max(1, min(int(4 * len(units) ** 0.5), len(units) // 39))  # faiss warns below 39 documents per cell
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _ITERATIONS_SEED
    index.train(units)
    index.add(units)
    index.nprobe = probes

    def search(queries: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        scores, places = index.search(_units(queries), most)
        return scores, places.astype(np.int32)

    return search


def _units(vectors: np.ndarray) -> np.ndarray:
    floats = vectors.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-6)
