"""The first stage of searching INT8 embeddings: candidates by the Hamming distance of their signs, by FAISS.

    signs.npy     uint8 [N, d/8], one bit a dimension, compared with all of it (FAISS's exhaustive binary search), or
    signs.faiss   an IndexBinaryIVF, of which a query reads only the nearest inverted lists

An INT8 value's sign bit is 1 from 0 on, as the quantizer's is; the values between -1/254 and 0, which INT8 rounds to
0, are the only ones whose bit differs from that of the unrounded vector.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.errors import BadInput
from pplx_jax.models.quantization import pack_bits
from pplx_jax.progress import Progress
from pplx_jax.retrieval.shards import ShardedVectors

# From so many vectors on lists are made unasked; an exhaustive query then reads 1.3 GB of 1,024 signs each.
LISTS_FROM = 10_000_000
_BLOCK = 65_536
_TRAINING_SIGNS_PER_LIST = 64
_TRAINING_ITERATIONS = 10
_PROBED_SHARE = 1 / 4  # what fewer miss: benchmarks/results/search_scale.json


def default_lists(count: int) -> int:
    """Inverted lists of an index of `count` vectors: none, or about a square root."""
    return round(count**0.5) if count >= LISTS_FROM else 0


def write_signs(folder: pathlib.Path, vectors: ShardedVectors, lists: int) -> None:
    """Writes signs.npy, or signs.faiss where `lists` is not 0.

    Memory: a block of vectors; with lists also all signs and their numbers, N (d/8 + 8) bytes, and their growth.

    Args:
        folder: where to.
        vectors: int8 [N, d], d a multiple of 8.
        lists: inverted lists of `signs.faiss`.

    Raises:
        BadInput: faiss is not installed, or there are more lists than vectors.
    """
    if not 0 <= lists <= len(vectors):
        raise BadInput(f"lists={lists} for {len(vectors)} vectors: give 0 for none, or fewer than there are vectors")
    faiss = import_faiss()
    width = vectors.shape[1]
    with Progress("signs", len(vectors), unit="vector") as progress:
        if not lists:
            shape = (len(vectors), width // 8)
            signs = np.lib.format.open_memmap(folder / "signs.npy", "w+", dtype=np.uint8, shape=shape)
            for begin, block in _blocks(vectors):
                signs[begin : begin + len(block)] = block
                progress.update(begin + len(block))
            signs.flush()
            return
        coarse = faiss.IndexBinaryFlat(width)
        coarse.query_batch_size = _BLOCK  # its threads meet after each batch; 32 is the library's default
        index = faiss.IndexBinaryIVF(coarse, width, lists)
        index.cp.niter = _TRAINING_ITERATIONS
        index.cp.min_points_per_centroid = 1  # no warning for a small index of many lists
        progress.note(f"finding {lists} inverted lists")
        index.train(_sample(vectors, lists * _TRAINING_SIGNS_PER_LIST))
        for begin, block in _blocks(vectors):
            index.add(block)
            progress.update(begin + len(block))
        faiss.write_index_binary(index, str(folder / "signs.faiss"))


def _blocks(vectors: ShardedVectors) -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, len(vectors), _BLOCK):
        yield begin, pack_bits(vectors[begin : begin + _BLOCK])


def _sample(vectors: ShardedVectors, size: int) -> np.ndarray:
    """Signs of up to `size` vectors, the same every time."""
    drawn = np.random.default_rng(0).choice(len(vectors), min(size, len(vectors)), replace=False)
    return pack_bits(vectors.take(np.sort(drawn)))


class SignSearch:
    """Opened signs, mapped from disk.

    Attributes:
        lists: inverted lists; 0 where every query is compared with all signs.
    """

    def __init__(self, folder: pathlib.Path, lists: int):
        """Opens what `write_signs` wrote.

        Raises:
            BadInput: faiss is not installed.
            FileNotFoundError: the signs are missing.
            ValueError: they are damaged.
        """
        faiss = import_faiss()
        self.lists = lists
        self._signs: Any = None
        self._inverted: Any = None
        if not lists:
            self._signs = np.load(folder / "signs.npy", mmap_mode="r")
            return
        path = folder / "signs.faiss"
        if not path.exists():
            raise FileNotFoundError(2, "missing", str(path))
        try:
            self._inverted = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise ValueError(f"{path.name}: {str(error).rpartition('Error: ')[2]}") from None

    def candidates(self, queries: np.ndarray, count: int, probes: int | None = None) -> np.ndarray:
        """The nearest vectors by the signs of int8 queries [Q, d].

        Args:
            queries: int8.
            count: wanted of each query, at most N.
            probes: inverted lists that a query reads; a quarter of them where None. Ignored without lists.

        Returns:
            int64 [Q, count], nearest first; -1 where the lists that were read hold fewer.

        Raises:
            BadInput: `probes` is less than 1.
        """
        signs = pack_bits(queries)
        if not self.lists:
            return import_faiss().knn_hamming(signs, self._signs, count)[1]
        probes = max(1, round(self.lists * _PROBED_SHARE)) if probes is None else probes
        if probes < 1:
            raise BadInput(f"probes={probes}: read at least one of the {self.lists} inverted lists")
        self._inverted.nprobe = min(probes, self.lists)
        return self._inverted.search(signs, count)[1]


def import_faiss() -> Any:
    """The library.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise BadInput("the engine faiss needs faiss: pip install 'pplx-jax[search]', or take numpy") from None
    return faiss
