"""The documents nearest to each query: all of them compared, or those of the nearest cells only."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.objectives.similarity import normalize
from pplx_jax.retrieval.sign_search import import_faiss

_DOCUMENTS_PER_BLOCK = 65536
_ITERATIONS_SEED = 1234

# Queries [Q, D] int8 and how many documents -> cosines [Q, k] falling, places [Q, k]; place -1 where none was found.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def exact_search(documents: np.ndarray) -> Search:
    """Compares every query with every document, a block of documents at a time; ties fall to the earlier document.

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
    """The best so far and those of a block, merged: the earlier stand first, and win ties."""
    found = jnp.einsum("qd,nd->qn", normalize(queries), normalize(block), precision=jax.lax.Precision.HIGHEST)
    here = jnp.broadcast_to(start + jnp.arange(block.shape[0], dtype=jnp.int32), found.shape)
    scores, places = jnp.concatenate([scores, found], axis=1), jnp.concatenate([places, here], axis=1)
    scores, order = jax.lax.top_k(scores, min(most, scores.shape[1]))
    return scores, jnp.take_along_axis(places, order, axis=1)


def approximate_search(documents: np.ndarray, probes: int) -> Search:
    """Looks in the `probes` cells nearest to the query, of about 4 sqrt(N) (faiss's IVF index; arXiv 1702.08734).

    Args:
      documents: [N, D] int8.
      probes: cells; more find more of what `exact_search` does, in more time.

    Raises:
      BadInput: faiss is not installed.
    """
    faiss = import_faiss()
    units, width = _units(documents), documents.shape[1]
    cells = max(1, min(int(4 * len(units) ** 0.5), len(units) // 39))  # faiss asks for 39 documents a cell
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
