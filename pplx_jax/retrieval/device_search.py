"""Exact search on all of JAX's devices: INT8 products with INT32 sums, a top k a device, and one merge.

A device ranks by a float32 cosine, a few units in the last place off. It therefore returns more than k documents, which
are ranked again from their exact integers as `search.top_k` does; a query for which a document beyond those could
still belong to the first k, by rounding or by a tie, is asked again for more. So the answer is that of `top_k`, ties
included, on any device.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.search import rescore, squared_norms
from pplx_jax.retrieval.sharded_vectors import ShardedVectors

_AXIS = "documents"
_ROWS_PER_DEVICE = 1 << 17
_RESIDENT_SHARE = 0.5
_SPARE, _GROWTH = 32, 4
_ROUNDING = 2.0**-16  # of a float32 cosine, generously: the sums are exact, one root and two products are not


class DeviceSearch:
    """Vectors spread over the devices, block by block.

    Blocks stay on the devices where half of their memory holds all; else each search streams them from disk.
    """

    def __init__(
        self,
        vectors: ShardedVectors,
        places: np.ndarray,
        excluded: np.ndarray,
        *,
        rows_per_device: int = _ROWS_PER_DEVICE,
        resident_bytes: int | None = None,
    ):
        """Prepares the devices of this process; nothing is read yet.

        Args:
            vectors: int8 [N, d].
            places: int64 [N], the order of ties; see `search.top_k`.
            excluded: bool [N], documents that are no candidates.
            rows_per_device: documents of a block on each device.
            resident_bytes: how many bytes of vectors may stay on all devices together; half of their memory where
                None, nothing where a device does not tell.

        Raises:
            BadInput: N is past the range of int32.
        """
        if len(vectors) >= 2**31:
            raise BadInput(f"{len(vectors)} vectors are more than one index can hold on devices; split the embeddings")
        self._vectors, self._places, self._excluded = vectors, places, excluded
        devices = jax.local_devices()
        self._mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
        self._rows = len(devices) * min(rows_per_device, -(-len(vectors) // len(devices)))
        if resident_bytes is None:
            memory = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
            resident_bytes = int(_RESIDENT_SHARE * len(devices) * min(memory))
        self._keep = len(vectors) * vectors.shape[1] <= resident_bytes
        self._kept: list[tuple[jax.Array, jax.Array]] = []

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of int8 queries [Q, d]: what `search.top_k` returns, bit for bit."""
        count = int((~self._excluded).sum())
        k = min(k, count)
        documents, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        waiting, width = np.arange(len(queries)), min(2 * k + _SPARE, count)
        while k and len(waiting):
            # Always as many queries, so that the devices' program is compiled once a width.
            found, cosines = self._approximate(queries[np.resize(waiting, len(queries))], width)
            found, cosines = found[: len(waiting)], cosines[: len(waiting)]
            documents[waiting], scores[waiting] = rescore(queries[waiting], found, self._vectors.take, self._places, k)
            unseen = cosines[:, -1] + _ROUNDING * np.abs(cosines[:, -1])
            waiting = waiting[(scores[waiting, -1] <= unseen) & (width < count)]
            width = min(_GROWTH * width, count)
        return documents, scores

    def _approximate(self, queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents int64 [Q, width] and their cosines, about; best first."""
        norms = np.sqrt(squared_norms(queries))[:, None]
        on_devices = jax.device_put(queries, NamedSharding(self._mesh, PartitionSpec()))
        shape = (len(queries), width)
        best = previous = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
        for number, (block, excluded) in enumerate(self._blocks()):
            jax.block_until_ready(previous)  # at most two blocks are on their way
            previous = best
            best = _merge_block(best, on_devices, block, excluded, number * self._rows, mesh=self._mesh)
        scores, documents = (np.asarray(array) for array in best)
        return documents.astype(np.int64), np.divide(scores, norms, out=np.zeros(shape), where=norms > 0)

    def _blocks(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Vectors int8 [rows, d] and whether each is no candidate, the last block filled up with such."""
        if self._kept:
            yield from self._kept
            return
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))
        kept = []
        for begin in range(0, len(self._vectors), self._rows):
            vectors = self._vectors[begin : begin + self._rows]
            missing = self._rows - len(vectors)
            excluded = np.pad(self._excluded[begin : begin + self._rows], (0, missing), constant_values=True)
            vectors = np.pad(vectors, ((0, missing), (0, 0))) if missing else np.ascontiguousarray(vectors)
            block = jax.device_put(vectors, sharding), jax.device_put(excluded, sharding)
            if self._keep:
                kept.append(block)
            yield block
        self._kept = kept


@functools.partial(jax.jit, static_argnames="mesh")
def _merge_block(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    block: jax.Array,
    excluded: jax.Array,
    begin: jax.Array,
    *,
    mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, jax.Array]:
    """The best of `best` (scores and documents [Q, K]) and of a block whose first document has number `begin`.

    A score is the cosine times the query's norm.
    """
    width = best[0].shape[1]

    def of_device(queries: jax.Array, block: jax.Array, excluded: jax.Array) -> tuple[jax.Array, jax.Array]:
        across = (((1,), (1,)), ((), ()))
        products = jax.lax.dot_general(queries, block, across, preferred_element_type=jnp.int32)
        squares = jnp.sum(jnp.square(block.astype(jnp.int32)), axis=1)
        scores = products.astype(jnp.float32) * jax.lax.rsqrt(jnp.maximum(squares, 1).astype(jnp.float32))
        scores, rows = jax.lax.top_k(jnp.where(excluded, -jnp.inf, scores), min(width, len(block)))
        return scores, rows + jax.lax.axis_index(_AXIS) * len(block)

    by_device = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(_AXIS), PartitionSpec(_AXIS)),
        out_specs=PartitionSpec(None, _AXIS),
    )
    scores, rows = by_device(queries, block, excluded)
    scores, place = jax.lax.top_k(jnp.concatenate([best[0], scores], axis=1), width)
    documents = jnp.take_along_axis(jnp.concatenate([best[1], rows + begin], axis=1), place, axis=1)
    return scores, documents
