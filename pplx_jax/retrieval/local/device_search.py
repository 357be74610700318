"""Exact search on all JAX devices: INT8 products with INT32 sums, a top k on each device, and one merge.

A device ranks by a float32 cosine with rounding errors. It therefore returns more than k documents, which are ranked
again by exact integer arithmetic, as in `exact_search.top_k`. If a document that was not returned could still be among
the first k, by rounding or by a tie, the query is repeated with more documents. So the result equals that of `top_k`,
including ties, on any device.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.exact_search import rescore, squared_norms
from pplx_jax.retrieval.local.sharded_vectors import RowRange, ShardedVectors

_AXIS = "documents"
_ROWS_PER_DEVICE = 1 << 17
_RESIDENT_SHARE = 0.5
_SPARE, _GROWTH = 32, 4
_ROUNDING = 2.0**-16  # upper bound for a float32 cosine: the sums are exact, one root and two products are not


class DeviceSearch:
    """Searches vectors in blocks that are sharded over the devices.

    Blocks stay on the devices if all fit in half of their memory. Else every search streams them from disk.
    """

    def __init__(
        self,
        vectors: ShardedVectors | RowRange,
        places: np.ndarray,
        excluded: np.ndarray,
        *,
        rows_per_device: int = _ROWS_PER_DEVICE,
        resident_bytes: int | None = None,
    ):
        """Prepares the devices of this process. Nothing is read yet.

        Args:
            vectors: int8 [N, d].
            places: int64 [N], the order of ties; see `exact_search.top_k`.
            excluded: bool [N], documents that are never hits.
            rows_per_device: number of documents in a block on each device.
            resident_bytes: bytes of vectors that may stay on all devices together. None for half of their memory, or 0
                if a device does not report its memory.

        Raises:
            BadInput: N exceeds int32.
        """
        if len(vectors) >= 2**31:
            raise BadInput(f"{len(vectors)} vectors exceed the limit of 2^31 for the engine jax; split the embeddings")
        self._vectors, self._places, self._excluded = vectors, places, excluded
        devices = jax.local_devices()
        self._mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
        self._rows = len(devices) * min(rows_per_device, -(-len(vectors) // len(devices)))
        if resident_bytes is None:
            memory = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
            resident_bytes = int(_RESIDENT_SHARE * len(devices) * min(memory))
        self._keep = len(vectors) * vectors.shape[1] <= resident_bytes
        self._resident: list[tuple[jax.Array, jax.Array]] = []

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of int8 queries [Q, d], bit for bit as `exact_search.top_k` does."""
        count = int((~self._excluded).sum())
        k = min(k, count)
        documents, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        waiting, width = np.arange(len(queries)), min(2 * k + _SPARE, count)
        while k and len(waiting):
            # The number of queries stays constant, so the program is compiled once per width.
            found, cosines = self._approximate(queries[np.resize(waiting, len(queries))], width)
            found, cosines = found[: len(waiting)], cosines[: len(waiting)]
            documents[waiting], scores[waiting] = rescore(queries[waiting], found, self._vectors.take, self._places, k)
            unseen = cosines[:, -1] + _ROUNDING * np.abs(cosines[:, -1])
            waiting = waiting[(scores[waiting, -1] <= unseen) & (width < count)]
            width = min(_GROWTH * width, count)
        return documents, scores

    def _approximate(self, queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns documents int64 [Q, width] and their approximate cosines, best first."""
        norms = np.sqrt(squared_norms(queries))[:, None]
        on_devices = jax.device_put(queries, NamedSharding(self._mesh, PartitionSpec()))
        shape = (len(queries), width)
        best = previous = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
        for number, (block, excluded) in enumerate(self._blocks()):
            jax.block_until_ready(previous)  # at most two blocks are in transfer
            previous = best
            best = _merge_block(best, on_devices, block, excluded, number * self._rows, mesh=self._mesh)
        scores, documents = (np.asarray(array) for array in best)
        return documents.astype(np.int64), np.divide(scores, norms, out=np.zeros(shape), where=norms > 0)

    def _blocks(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields vectors int8 [rows, d] and whether each is excluded. The last block is padded with excluded rows."""
        if self._resident:
            yield from self._resident
            return
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))
        resident = []
        for begin in range(0, len(self._vectors), self._rows):
            vectors = self._vectors[begin : begin + self._rows]
            missing = self._rows - len(vectors)
            excluded = np.pad(self._excluded[begin : begin + self._rows], (0, missing), constant_values=True)
            vectors = np.pad(vectors, ((0, missing), (0, 0))) if missing else np.ascontiguousarray(vectors)
            block = jax.device_put(vectors, sharding), jax.device_put(excluded, sharding)
            if self._keep:
                resident.append(block)
            yield block
        self._resident = resident


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
    """Merges `best` (scores and documents [Q, K]) with a block whose first document has number `begin`.

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
