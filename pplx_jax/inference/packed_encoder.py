"""Encodes token ids of any mix of lengths as pooled vectors, on one device or on a mesh of devices and processes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import NamedSharding

from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import dotted
from pplx_jax.data.batches.packing import shorten
from pplx_jax.inference.blocks import Block, Cutter, Tokens, in_passes
from pplx_jax.inference.overflow import SHORTEN, Overflow, TooLong
from pplx_jax.inference.sequence_plan import shortest_sequence
from pplx_jax.models.embedding import embed
from pplx_jax.models.parameters import bind
from pplx_jax.models.transformer import Qwen3, Qwen3Config
from pplx_jax.parallel.gather_rows import gather_rows
from pplx_jax.parallel.mesh import Mesh, batch_sharding, leaf_sharding, replicated
from pplx_jax.parallel.rules import constrain, shards
from pplx_jax.parallel.shares import deal


@functools.partial(jax.jit, static_argnames="slots")
def _embed(model: Qwen3, batch: dict[str, jax.Array], slots: int) -> jax.Array:
    return constrain(embed(model, batch, slots)[0], "rows", None, None)


def in_compute_precision(params: Any, dtype: str) -> Any:
    """Casts the matrices to the dtype of matrix products, which halves memory in bfloat16 without changing results.

    Norm scales stay float32, because they are multiplied in float32.
    """

    def cast(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


class PackedEncoder:
    """Encodes and pools chunks of token ids.

    The vectors do not depend on the number of devices and processes, bit for bit in float32, because every device
    encodes whole blocks (`inference.blocks`). The exceptions are axes that share a sum between devices, `tensor` and
    `sequence`: sums of parts round differently, by about 1e-7 of the vectors.

    Args:
      config: the encoder.
      params: its parameters, nested dict of arrays. Arrays on the devices of `mesh` keep their shardings. Others are
        placed on it by the rules of `parallel.rules`.
      pad_id, separator_id: token ids.
      batch_tokens: tokens per device in a forward pass. A longer sequence is passed alone.
      slots: maximum chunks in a sequence. Documents with more chunks get sequences with more slots.
      mesh: the devices. Each device along the axes of "rows" encodes other sequences. It may span processes; then all
        of them make every call together, with the same arguments. None for the device of `params`, or the first one.
      shared: for a mesh of this process's own devices: all processes make every call together, with the same arguments,
        and each encodes a share.
      alone: whether every document has a forward pass by itself, see `deterministic` of `Embedder`.
    """

    def __init__(
        self,
        config: Qwen3Config,
        params: Any,
        *,
        pad_id: int,
        separator_id: int,
        batch_tokens: int,
        slots: int,
        mesh: jax.sharding.Mesh | None = None,
        shared: bool = False,
        alone: bool = False,
    ):
        self._config = config = dataclasses.replace(config, unroll=1)
        self._mesh = _mesh_of(params) if mesh is None else mesh
        platform = self._mesh.devices.flat[0].platform
        # XLA on CPU would turn a stack of bfloat16 layers into float32 in every call.
        held = params if platform == "cpu" else in_compute_precision(params, config.dtype)
        self._model = bind(config, _on_mesh(held, self._mesh))
        self._pad_id = pad_id
        shortest = shortest_sequence(platform)
        self._cutter = Cutter(config.max_length, batch_tokens, slots, shortest, separator_id, alone)
        self._shards = shards("rows", self._mesh)
        self._placement = batch_sharding(self._mesh)
        self._owners = _owners(self._placement, self._shards)
        spans = any(device.process_index != jax.process_index() for device in self._mesh.devices.flat)
        self._dealt = shared and not spans and jax.process_count() > 1
        self._together = spans or self._dealt

    def pool(
        self,
        ids: Sequence[Tokens],
        counts: np.ndarray,
        *,
        overflow: Overflow = "error",
        overlap: int | None = None,
        noun: str = "text",
        done: Callable[[int, int], None] = lambda texts, tokens: None,
    ) -> np.ndarray:
        """Returns the pooled vectors of chunks, each encoded in its document.

        Args:
          ids: token ids of each chunk of all documents.
          counts: int64, number of chunks of each document.
          overflow: what happens to a document over the model's limit, see `Embedder`.
          overlap: of "split", in tokens; None for an eighth of the limit.
          noun: the word for a document in error messages.
          done: called with the numbers of documents and tokens of each forward pass of this process.

        Returns:
          [C, D] float32, complete on every process; a chunk without tokens gives a zero vector.

        Raises:
          BadInput: a document is over the limit with overflow="error" (the message has its index), `overflow` or
            `overlap` is invalid, or a vector is non-finite, which quantization would hide.
        """
        if overflow not in get_args(Overflow):
            raise BadInput(f"overflow={overflow!r} is not one of {', '.join(get_args(Overflow))}")
        if overflow == "split" and self._config.pooling != "mean":
            raise BadInput(
                f"overflow='split' takes means; give 'truncate' to a model with {self._config.pooling!r} pooling"
            )
        limit = self._config.max_length
        lengths = np.array([len(chunk) for chunk in ids], np.int64)
        first_chunk = np.cumsum(counts) - counts
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        sizes = bounds[first_chunk + counts] - bounds[first_chunk] + np.maximum(counts - 1, 0)
        over = sizes > limit
        if overflow == "error" and over.any():
            first = int(np.flatnonzero(over)[0])
            raise TooLong(first, int(sizes[first]), limit, noun=noun, fix=SHORTEN)
        if overflow == "truncate":
            filled = np.concatenate([[0], np.cumsum(lengths > 0)])
            with_tokens = filled[first_chunk + counts] - filled[first_chunk]
            # A chunk that keeps no token would have a zero vector.
            too_many_chunks = np.flatnonzero(over & (with_tokens + counts - 1 > limit))
            if len(too_many_chunks):
                first = int(too_many_chunks[0])
                raise BadInput(
                    f"{noun} {first} has {counts[first]} chunks, but a model of {limit} tokens takes {(limit + 1) // 2}"
                    ', with the separators between them; split it, or pass overflow="split"'
                )
            for text in np.flatnonzero(over):
                chunks = slice(first_chunk[text], first_chunk[text] + counts[text])
                lengths[chunks] = shorten(lengths[chunks], limit - int(counts[text]) + 1)
            sizes = np.minimum(sizes, limit)
        packed = ~over if overflow == "split" else np.ones(len(counts), bool)
        blocks = list(self._cutter.packed(ids, lengths, counts, sizes, np.flatnonzero(packed & (counts > 0))))
        split, places = {}, len(ids)
        for text in np.flatnonzero(~packed):
            chunks = slice(first_chunk[text], first_chunk[text] + counts[text])
            split[text] = self._cutter.split(ids[chunks], limit // 8 if overlap is None else overlap, places)
            places += len(split[text].chunks)
            blocks += split[text].blocks
        vectors = self._encode(blocks, places, done)
        pooled = vectors[: len(ids)]
        for text, document in split.items():
            pooled[first_chunk[text] : first_chunk[text] + counts[text]] = document.pooled(vectors, counts[text])
        non_finite = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
        if len(non_finite):
            text = int(np.searchsorted(np.cumsum(counts), non_finite[0], side="right"))
            why = f"the model's weights are damaged, or too large for {self._config.dtype}"
            raise BadInput(f"{noun} {text} has a non-finite vector: {why}; use another checkpoint")
        return pooled

    def shapes(self, most_tokens: int) -> list[tuple[int, int, int]]:
        """Returns the shapes to `compile`, see `Cutter.shapes`."""
        return list(self._cutter.shapes(most_tokens))

    def compile(self, shape: tuple[int, int, int]) -> None:
        """Compiles the forward pass of blocks (rows, length, slots). Later passes of this shape do not compile."""
        with jax.set_mesh(self._mesh):
            _embed.lower(self._model, self._batch(shape, []), shape[2]).compile()

    def _encode(self, blocks: Sequence[Block], places: int, done: Callable[[int, int], None]) -> np.ndarray:
        """Returns the vectors of all blocks, [places, D] float32."""
        vectors = np.zeros((places, self._config.width), np.float32)
        own, owned = self._share_out(blocks)
        running: tuple[jax.Array, Sequence[Block]] | None = None
        for passed in own:
            batch = self._batch(passed[0].shape, passed)  # prepared while the devices compute the pass before it
            if running is not None:
                _take(*running, vectors, done)
            with jax.set_mesh(self._mesh):  # the kernels look up their platform in the mesh
                running = _embed(self._model, batch, passed[0].slots), passed
        if running is not None:
            _take(*running, vectors, done)
        if self._together:
            taken = [np.concatenate([[], *(block.place for block in some)]).astype(np.int64) for some in owned]
            found = gather_rows(vectors[taken[jax.process_index()]], [len(some) for some in taken])
            for at, rows in zip(taken, found, strict=True):
                vectors[at] = rows
        return vectors

    def _share_out(self, blocks: Sequence[Block]) -> tuple[list[list[Block]], list[list[Block]]]:
        """Returns the passes of this process, and for each process the blocks whose vectors it sends to the others."""
        passes, processes = in_passes(blocks, self._shards), range(jax.process_count())
        if self._dealt:
            cells = [passed[0].rows * passed[0].length for passed in passes]
            shares = [[passes[place] for place in share] for share in deal(cells, len(processes))]
            return shares[jax.process_index()], [list(itertools.chain(*share)) for share in shares]
        pairs = [pair for passed in passes for pair in zip(passed, self._owners, strict=False)]
        return passes, [[block for block, owner in pairs if owner == process] for process in processes]

    def _batch(self, shape: tuple[int, int, int], blocks: Sequence[Block]) -> dict[str, jax.Array]:
        """Returns the batch of a pass: a block for each device along "rows". Missing blocks are padding."""
        rows, length, _ = shape
        filled: dict[int, dict[str, np.ndarray]] = {}

        def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
            place = (index[0].start or 0) // rows
            if place not in filled:
                filled[place] = self._empty(rows, length)
                if place < len(blocks):
                    blocks[place].fill(filled[place])
            return filled[place][name]

        return {
            name: jax.make_array_from_callback(
                (rows * self._shards, length), self._placement, functools.partial(part, name)
            )
            for name in ("tokens", "segment_ids", "positions", "chunk_ids")
        }

    def _empty(self, rows: int, length: int) -> dict[str, np.ndarray]:
        batch = {name: np.zeros((rows, length), np.int32) for name in ("segment_ids", "positions", "chunk_ids")}
        return batch | {"tokens": np.full((rows, length), self._pad_id, np.int32)}


def _take(found: jax.Array, blocks: Sequence[Block], vectors: np.ndarray, done: Callable[[int, int], None]) -> None:
    """Copies the vectors of a pass that are on devices of this process to their places."""
    taken = set()
    for shard in found.addressable_shards:
        place = (shard.index[0].start or 0) // blocks[0].rows
        if place < len(blocks) and place not in taken:
            taken.add(place)
            block = blocks[place]
            vectors[block.place] = np.asarray(shard.data)[block.row, block.slot]
    done(sum(block.texts for block in blocks), sum(block.tokens for block in blocks))


def _mesh_of(params: Any) -> jax.sharding.Mesh:
    """Returns the mesh of the device that holds the parameters, or of the first one of this process."""
    leaf = jax.tree.leaves(params)[0]
    return Mesh().build(list(leaf.devices()) if isinstance(leaf, jax.Array) else jax.local_devices())


def _on_mesh(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the parameters on the mesh. Those that are there already keep their shardings."""
    devices, copied = set(mesh.devices.flat), {"slice", "data"}

    def place(path, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        spread = any(size > 1 and axis not in copied for axis, size in mesh.shape.items())
        sharding = leaf_sharding(dotted(path), leaf.shape, mesh) if spread else replicated(mesh)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree_util.tree_map_with_path(place, params)


def _owners(placement: NamedSharding, count: int) -> list[int]:
    """Returns the process that has each part of an array of `count` parts; the first one if several have it."""
    owners = [jax.process_count()] * count
    for device, index in placement.devices_indices_map((count,)).items():
        place = index[0].start or 0
        owners[place] = min(owners[place], device.process_index)
    return owners
