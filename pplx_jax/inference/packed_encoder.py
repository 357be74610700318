"""Encodes token ids of any mix of lengths as pooled vectors: packs them into sequences, batches, runs the encoder."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.packing import Packing, lay_out, shorten
from pplx_jax.inference.overflow import Overflow, TooLong, windows
from pplx_jax.inference.sequence_plan import plan_sequences, power_of_two
from pplx_jax.models.embedding import embed
from pplx_jax.models.parameters import bind
from pplx_jax.models.transformer import Qwen3, Qwen3Config
from pplx_jax.parallel.mesh import Mesh

Tokens = Sequence[int] | np.ndarray


@functools.partial(jax.jit, static_argnames="slots")
def _embed(model: Qwen3, batch: dict[str, jax.Array], slots: int) -> tuple[jax.Array, jax.Array]:
    return embed(model, batch, slots)


def in_compute_precision(params: Any, dtype: str) -> Any:
    """Casts the matrices to the dtype of matrix products, which halves memory in bfloat16 without changing results.

    Norm scales stay float32, because they are multiplied in float32.
    """

    def cast(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


class PackedEncoder:
    """Encodes and pools chunks of token ids.

    Args:
      config: the encoder.
      params: its parameters, nested dict of arrays on the host or on one device.
      pad_id, separator_id: token ids.
      batch_tokens: tokens per forward pass. A longer sequence is passed alone.
      slots: maximum chunks in a sequence. Documents with more chunks get sequences with more slots.
    """

    def __init__(
        self, config: Qwen3Config, params: Any, *, pad_id: int, separator_id: int, batch_tokens: int, slots: int
    ):
        self._config = config
        placed = jax.tree.map(jnp.asarray, in_compute_precision(params, config.dtype))
        self._model = bind(config, placed)
        self._mesh = Mesh().build(list(jax.tree.leaves(placed)[0].devices()))
        self._pad_id, self._separator_id = pad_id, separator_id
        self._batch_tokens = batch_tokens
        self._slots = slots

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
          done: called with the numbers of documents and tokens of each forward pass.

        Returns:
          [C, D] float32; a chunk without tokens gives a zero vector.

        Raises:
          BadInput: a document is over the limit with overflow="error" (the message has its index), `overflow` or
            `overlap` is invalid, or a vector is non-finite, which quantization would hide.
        """
        if overflow not in get_args(Overflow):
            raise BadInput(f"overflow={overflow!r} is not one of {', '.join(get_args(Overflow))}")
        limit = self._config.max_length
        lengths = np.array([len(chunk) for chunk in ids], np.int64)
        first_chunk = np.cumsum(counts) - counts
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        sizes = bounds[first_chunk + counts] - bounds[first_chunk] + np.maximum(counts - 1, 0)
        too_long = sizes > limit
        if overflow == "error" and too_long.any():
            first = int(np.flatnonzero(too_long)[0])
            fix = 'shorten it, or pass overflow="split" or "truncate"'
            raise TooLong(first, int(sizes[first]), limit, noun=noun, fix=fix)
        if overflow == "truncate":
            too_many_chunks = np.flatnonzero(too_long & (counts - 1 >= limit))
            if len(too_many_chunks):
                first = int(too_many_chunks[0])
                raise BadInput(f"{noun} {first} has {counts[first]} chunks, the model takes {limit} tokens; split it")
            for text in np.flatnonzero(too_long):
                chunks = slice(first_chunk[text], first_chunk[text] + counts[text])
                lengths[chunks] = shorten(lengths[chunks], limit - int(counts[text]) + 1)
            sizes = np.minimum(sizes, limit)
        packed = ~too_long if overflow == "split" else np.ones(len(counts), bool)
        pooled = np.zeros((len(ids), self._config.width), np.float32)
        chosen = np.flatnonzero(packed & (counts > 0))
        for plan in plan_sequences(chosen, sizes, counts, limit=limit, slots=self._slots):
            chunks = np.concatenate([np.arange(first_chunk[t], first_chunk[t] + counts[t]) for t in plan.texts])
            placed = lay_out(lengths[chunks], counts[plan.texts], plan.sequence, np.arange(len(plan.texts)))
            self._pool_sequences(ids, chunks, placed, plan.length, plan.slots, pooled, done)
        for text in np.flatnonzero(~packed):
            chunks = slice(first_chunk[text], first_chunk[text] + counts[text])
            pooled[chunks] = self._pool_windows(ids[chunks], limit // 8 if overlap is None else overlap)
            done(1, int(sizes[text]))
        non_finite = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
        if len(non_finite):
            text = int(np.searchsorted(np.cumsum(counts), non_finite[0], side="right"))
            why = f"the model's weights are damaged, or too large for {self._config.dtype}"
            raise BadInput(f"{noun} {text} has a non-finite vector: {why}; use another checkpoint")
        return pooled

    def _pool_sequences(
        self, ids, chunks: np.ndarray, placed: Packing, length: int, slots: int, pooled: np.ndarray, done
    ) -> None:
        for first_row, rows in self._forward_passes(int(placed.row.max()) + 1, length):
            inside = np.flatnonzero((placed.row >= first_row) & (placed.row < first_row + rows))
            batch = self._empty_batch(rows, length)
            for place in inside:
                row, column, kept = placed.row[place] - first_row, placed.column[place], placed.kept[place]
                cells = slice(column, column + kept)
                batch["tokens"][row, cells] = ids[chunks[place]][:kept]
                batch["segment_ids"][row, cells] = placed.segment[place]
                batch["positions"][row, cells] = np.arange(placed.position[place], placed.position[place] + kept)
                batch["chunk_ids"][row, cells] = placed.slot[place] + 1
                if placed.position[place] > 0:  # not the first chunk: a separator comes before it
                    batch["tokens"][row, column - 1] = self._separator_id
                    batch["segment_ids"][row, column - 1] = placed.segment[place]
                    batch["positions"][row, column - 1] = placed.position[place] - 1
            vectors, _ = self._run(batch, slots)
            pooled[chunks[inside]] = vectors[placed.row[inside] - first_row, placed.slot[inside]]
            done(int(batch["segment_ids"].max(axis=1).sum()), int((batch["segment_ids"] > 0).sum()))

    def _pool_windows(self, ids: Sequence[Tokens], overlap: int) -> np.ndarray:
        """Pools a document over the limit: one window per sequence, and chunk means over the windows."""
        lengths = np.array([len(chunk) for chunk in ids])
        first = np.cumsum(lengths) - lengths + np.arange(len(ids))
        size = int(first[-1] + lengths[-1])
        tokens, chunk_of = np.full(size, self._separator_id, np.int32), np.full(size, -1)
        for place, chunk in enumerate(ids):
            tokens[first[place] : first[place] + len(chunk)] = chunk
            chunk_of[first[place] : first[place] + len(chunk)] = place
        limit = self._config.max_length
        cut = windows(size, limit, overlap, first)
        totals, weights = np.zeros((len(ids), self._config.width)), np.zeros(len(ids))
        for first_row, rows in self._forward_passes(len(cut), limit):
            batch, members = self._empty_batch(rows, limit), []
            for row, window in enumerate(cut[first_row : first_row + rows]):
                batch["tokens"][row] = tokens[window.start : window.stop]
                batch["segment_ids"][row] = 1
                batch["positions"][row] = np.arange(limit)
                own = chunk_of[window.own : window.own_stop]
                members.append(np.unique(own[own >= 0]))
                cells = slice(window.own - window.start, window.own_stop - window.start)
                batch["chunk_ids"][row, cells] = np.where(own >= 0, np.searchsorted(members[row], own) + 1, 0)
            slots = power_of_two(max(self._slots, *map(len, members)))
            vectors, counts = self._run(batch, slots)
            for row, chunks in enumerate(members):
                totals[chunks] += vectors[row, : len(chunks)] * counts[row, : len(chunks), None]
                weights[chunks] += counts[row, : len(chunks)]
        return (totals / np.maximum(weights, 1)[:, None]).astype(np.float32)

    def _forward_passes(self, rows: int, length: int) -> Iterator[tuple[int, int]]:
        """Yields (first row, number of rows) of every pass. The last is padded to a power of two."""
        most = max(self._batch_tokens // length, 1)
        for first_row in range(0, rows, most):
            yield first_row, min(most, power_of_two(rows - first_row))

    def _empty_batch(self, rows: int, length: int) -> dict[str, np.ndarray]:
        batch = {name: np.zeros((rows, length), np.int32) for name in ("segment_ids", "positions", "chunk_ids")}
        return batch | {"tokens": np.full((rows, length), self._pad_id, np.int32)}

    def _run(self, batch: dict[str, np.ndarray], slots: int) -> tuple[np.ndarray, np.ndarray]:
        with jax.set_mesh(self._mesh):  # the kernels look up their platform in the mesh
            vectors, counts = _embed(self._model, jax.tree.map(jnp.asarray, batch), slots)
        return np.asarray(vectors), np.asarray(counts)
