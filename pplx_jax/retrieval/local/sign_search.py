"""The first stage of search in INT8 embeddings: finds candidates by their signs, one bit per dimension.

    signs.npy     uint8 [N, d/8]
    signs.faiss   an IndexBinaryIVF; a query reads only the nearest inverted lists. Without it FAISS compares a query
                  with all signs.

FAISS finds several times the requested number of candidates by the Hamming distance of the signs. Of those, the vectors
are chosen whose signs have the largest product with the query's INT8 values. The query does not have to be binary
(asymmetric distance: Gordo, Perronnin, Gong & Lazebnik, "Asymmetric Distances for Binary Embeddings", 2014), and no
INT8 vector is read.

The sign bit of an INT8 value is 1 if the value is at least 0, as in the quantizer. Only values between -1/254 and 0,
which INT8 rounds to 0, have another bit than the unrounded vector.
"""

import os
import pathlib
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.kernels.quantization import pack_bits
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors

# Above this number of vectors, inverted lists are the default: an exhaustive query of 1,024 bits reads 1.3 GB.
LISTS_FROM = 10_000_000
_BLOCK = 65_536
_TRAINING_SIGNS_PER_LIST = 64
_TRAINING_ITERATIONS = 10
_PROBED_SHARE = 1 / 4  # benchmarks/results/search_scale.json has the recall of smaller shares
_ROWS_IN_CACHE = 256  # rows of unpacked signs, as float32
_COUNTING_BYTES = 1 << 29
_WIDENING = 4  # candidates by Hamming distance per requested candidate


def default_lists(count: int) -> int:
    """Returns the default number of inverted lists for `count` vectors: 0, or about the square root."""
    return round(count**0.5) if count >= LISTS_FROM else 0


def write_signs(folder: pathlib.Path, vectors: ShardedVectors, lists: int) -> None:
    """Writes signs.npy, and signs.faiss if `lists` is not 0.

    Needs memory for one block of vectors. With lists also for all signs and their numbers, N (d/8 + 8) bytes, and for
    the growth of the lists.

    Args:
        folder: the folder to write to.
        vectors: int8 [N, d], d a multiple of 8.
        lists: number of inverted lists of `signs.faiss`.

    Raises:
        BadInput: faiss is not installed, or there are more lists than vectors.
    """
    if not 0 <= lists <= len(vectors):
        raise BadInput(f"lists={lists} for {len(vectors)} vectors: give 0 to {len(vectors)}")
    faiss = import_faiss()
    width = vectors.shape[1]
    signs = np.lib.format.open_memmap(folder / "signs.npy", "w+", dtype=np.uint8, shape=(len(vectors), width // 8))
    with Progress("signs", len(vectors), unit="vector") as progress:
        for begin in range(0, len(vectors), _BLOCK):
            signs[begin : begin + _BLOCK] = pack_bits(vectors[begin : begin + _BLOCK])
            progress.update(min(begin + _BLOCK, len(vectors)))
        signs.flush()
        if not lists:
            return
        coarse = faiss.IndexBinaryFlat(width)
        coarse.query_batch_size = _BLOCK  # threads synchronize after each batch; the default is 32
        index = faiss.IndexBinaryIVF(coarse, width, lists)
        index.cp.niter = _TRAINING_ITERATIONS
        index.cp.min_points_per_centroid = 1  # avoids a warning for a small index with many lists
        progress.note(f"finding {lists} inverted lists")
        index.train(_sample(signs, lists * _TRAINING_SIGNS_PER_LIST))
        for begin in range(0, len(vectors), _BLOCK):
            index.add(signs[begin : begin + _BLOCK])
        faiss.write_index_binary(index, str(folder / "signs.faiss"))


def _sample(signs: np.ndarray, size: int) -> np.ndarray:
    """Returns a seeded sample of up to `size` signs."""
    return signs[np.sort(np.random.default_rng(0).choice(len(signs), min(size, len(signs)), replace=False))]


class SignSearch:
    """Signs of an index, mapped from disk.

    Attributes:
        lists: number of inverted lists; 0 if every query is compared with all signs.
        shape: (N, d/8).
    """

    def __init__(self, folder: pathlib.Path, lists: int):
        """Opens the files of `write_signs`.

        Raises:
            BadInput: faiss is not installed.
            FileNotFoundError: the signs are missing.
            ValueError: the signs are damaged.
        """
        faiss = import_faiss()
        self.lists = lists
        self._signs = np.load(folder / "signs.npy", mmap_mode="r")
        self.shape: tuple[int, ...] = self._signs.shape
        if self._signs.dtype != np.uint8:
            raise ValueError(f"signs.npy holds {self._signs.dtype}")
        self._inverted: Any = None
        if not lists:
            return
        path = folder / "signs.faiss"
        if not path.exists():
            raise FileNotFoundError(2, "missing", str(path))
        try:
            self._inverted = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise ValueError(f"{path.name}: {str(error).rpartition('Error: ')[2]}") from None
        if (self._inverted.ntotal, self._inverted.d // 8) != self.shape:
            raise ValueError(f"{path.name} holds {self._inverted.ntotal} vectors of {self._inverted.d} bits")

    def candidates(self, queries: np.ndarray, count: int, probes: int | None = None) -> np.ndarray:
        """Returns vectors whose signs are close to those of int8 queries [Q, d].

        Args:
            queries: int8.
            count: number of candidates per query, at most N.
            probes: number of inverted lists that a query reads; None for a quarter of them. Ignored without lists.

        Returns:
            int64 [Q, count], unordered; -1 if the lists that were read hold fewer vectors.

        Raises:
            BadInput: `probes` is less than 1.
        """
        signs, wide = pack_bits(queries), min(_WIDENING * count, len(self._signs))
        if self.lists:
            probes = max(1, round(self.lists * _PROBED_SHARE)) if probes is None else probes
            if probes < 1:
                raise BadInput(f"probes={probes}: read at least one of the {self.lists} inverted lists")
            self._inverted.nprobe = min(probes, self.lists)
            near = self._inverted.search(signs, wide)[1]
        else:
            near = self._nearest_signs(signs, wide)
        if wide == count:
            return near
        return np.stack([self._greatest_products(*pair, count) for pair in zip(queries, near, strict=True)])

    def _nearest_signs(self, signs: np.ndarray, wide: int) -> np.ndarray:
        """Returns int64 [Q, wide] by Hamming distance. Queries are grouped, because FAISS needs memory for each."""
        bytes_a_query = 8 * wide * (8 * signs.shape[1] + 1)
        at_once = max(1, _COUNTING_BYTES // bytes_a_query)
        search = import_faiss().knn_hamming
        parts = [signs[begin : begin + at_once] for begin in range(0, len(signs) or 1, at_once)]
        return np.concatenate([search(part, self._signs, wide, variant="mc")[1] for part in parts])

    def _greatest_products(self, query: np.ndarray, near: np.ndarray, count: int) -> np.ndarray:
        """Returns the `count` of the vectors int64 [n] whose signs have the largest product with the query [d]."""
        found = np.sort(near[near >= 0])  # in disk order
        if len(found) <= count:
            return np.pad(found, (0, count - len(found)), constant_values=-1)
        products, values = np.empty(len(found), np.float32), query.astype(np.float32)
        for begin in range(0, len(found), _ROWS_IN_CACHE):
            rows = slice(begin, begin + _ROWS_IN_CACHE)
            positive = np.unpackbits(self._signs[found[rows]], axis=1).astype(np.float32)
            products[rows] = positive @ values  # half of the product with +1 and -1, plus a constant
        return found[np.argpartition(-products, count - 1)[:count]]


def import_faiss() -> Any:
    """Imports FAISS.

    Raises:
        BadInput: it is not installed.
    """
    # Otherwise FAISS's threads keep spinning after a search, on cores that the next step needs. Read only at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import faiss
    except ImportError:
        raise BadInput(
            "faiss is not installed: pip install 'pplx-jax[search]', or use another engine or an exact search"
        ) from None
    return faiss
