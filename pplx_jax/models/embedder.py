"""`Embedder`: texts in, embeddings out, in any mix of lengths; the face of a trained model."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.data.packing import pack
from pplx_jax.errors import BadInput
from pplx_jax.model_folder import ModelFolder, load_model
from pplx_jax.models.encoding import embed
from pplx_jax.models.quantization import BitOrder, Quantization, quantize
from pplx_jax.models.qwen3 import Qwen3
from pplx_jax.train_state import bind

_SHORTEST_ROW = 256
_TEXTS_AT_ONCE = 8192


@functools.partial(jax.jit, static_argnames="slots")
def _embed(model: Qwen3, batch: dict[str, jax.Array], slots: int) -> jax.Array:
    return embed(model, batch, slots)[0]


class Embedder:
    """Embeds texts, and documents of chunks by late chunking, through the same path as training.

    Texts are packed in rows, shortest rows first, so a list of any mix of lengths costs about its tokens; order is
    kept outside, and number out equals number in.

    Args:
      folder: a loaded model.
      batch_tokens: tokens of one forward pass.
      slots: most texts (or chunks) of a row.

    Example:
      >>> model = Embedder.load("quickstart_run/merged")
      >>> model.encode(["read a file line by line"]).dtype
      dtype('int8')
    """

    def __init__(self, folder: ModelFolder, *, batch_tokens: int = 8192, slots: int = 64):
        self.config = folder.config
        self.vocabulary = folder.vocabulary
        self.kind = folder.kind
        self.fingerprint = folder.fingerprint
        self._model = bind(folder.config, jax.device_put(folder.params))
        self._batch_tokens = batch_tokens
        self._slots = slots

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments) -> "Embedder":
        """Loads a model folder: a stage's, or a merge's.

        Raises:
          BadInput: the folder or a file in it is missing or damaged.
        """
        return cls(load_model(path), **arguments)  # type: ignore[arg-type]

    @property
    def dims(self) -> int:
        """Dimensions of an embedding."""
        return self.config.width

    def encode(
        self,
        texts: Sequence[str],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        truncate: bool = False,
    ) -> np.ndarray:
        """One embedding a text.

        Args:
          texts: each is encoded alone; the empty text gives a zero vector.
          quantization: "int8" (int8), "binary" (int8 of -1 and +1), "ubinary" (packed bits), "tanh" or "none"
            (float32).
          dims: a prefix of the dimensions, for models trained with MRL; all where None.
          bit_order: of "ubinary".
          truncate: cut texts over the model's length instead of raising.

        Returns:
          [n, dims], or [n, dims / 8] for "ubinary".

        Raises:
          BadInput: a text over the model's length, named by its place; a str in place of a list; bad dims.
        """
        texts = _as_list(texts, "texts")
        chunks = self._pool(self.vocabulary.encode_batch(texts), np.ones(len(texts), np.int64), truncate)
        return self._finish(chunks, quantization, dims, bit_order)

    def encode_documents(
        self,
        documents: Sequence[Sequence[str]],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        truncate: bool = False,
    ) -> list[np.ndarray]:
        """One embedding a chunk, each chunk seeing its whole document (late chunking).

        A query for a context model is a document of one chunk: `encode([query])` is the same.

        Args:
          documents: each a list of chunks in order; they are joined by the separator token, and only there.
          quantization, dims, bit_order: as `encode`.
          truncate: cut the longest chunks of a document over the model's length instead of raising.

        Returns:
          For each document [n_chunks, dims]; an empty chunk is a zero vector.

        Raises:
          BadInput: a document over the model's length, named by its place.
        """
        documents = [_as_list(document, f"document {i}") for i, document in enumerate(documents)]
        counts = np.array([len(document) for document in documents], np.int64)
        ids = self.vocabulary.encode_batch([chunk for document in documents for chunk in document])
        chunks = self._pool(ids, counts, truncate)
        flat = self._finish(chunks, quantization, dims, bit_order)
        return np.split(flat, np.cumsum(counts)[:-1]) if documents else []

    def encode_tokens(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Pooled vectors v [n, D] float32 of texts that are token ids already.

        Raises:
          BadInput: a text over the model's length.
        """
        return self._pool(ids, np.ones(len(ids), np.int64), truncate=False)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text [n]."""
        return np.array([len(ids) for ids in self.vocabulary.encode_batch(list(texts))], np.int64)

    def _finish(self, pooled, quantization, dims, bit_order) -> np.ndarray:
        dims = self.dims if dims is None else dims
        if not 0 < dims <= self.dims:
            raise BadInput(f"dims={dims} of a model of {self.dims} dimensions; ask for 1 to {self.dims}")
        return quantize(pooled[:, :dims], quantization, bit_order)

    def _pool(self, ids: Sequence[Sequence[int] | np.ndarray], counts: np.ndarray, truncate: bool) -> np.ndarray:
        """Pooled vectors [C, D] of the chunks `ids`, of which document i has counts[i], in order."""
        pooled = np.zeros((len(ids), self.dims), np.float32)
        lengths = np.array([len(chunk) for chunk in ids], np.int64)
        first_chunk = np.cumsum(counts) - counts
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        sizes = bounds[first_chunk + counts] - bounds[first_chunk] + np.maximum(counts - 1, 0)
        limit = self.config.max_length
        too_long = np.flatnonzero(sizes > limit)
        if len(too_long) and not truncate:
            raise BadInput(
                f"text {too_long[0]} has {sizes[too_long[0]]} tokens, the model takes {limit}; "
                "shorten it, split it, or pass truncate=True"
            )
        # Rows of a few lengths, so that a few compiled shapes serve every mix.
        row_lengths = np.maximum(_SHORTEST_ROW, 2 ** np.ceil(np.log2(np.maximum(np.minimum(sizes, limit), 1))))
        # A document's chunks share a row's slots: only a document of more chunks than that raises their number.
        for row_length in map(int, np.unique(row_lengths)):
            chosen = np.flatnonzero((row_lengths == row_length) & (counts > 0))
            for start in range(0, len(chosen), _TEXTS_AT_ONCE):
                texts = chosen[start : start + _TEXTS_AT_ONCE]
                chunks = np.concatenate([np.arange(first_chunk[t], first_chunk[t] + counts[t]) for t in texts])
                self._encode_rows(ids, chunks, lengths, counts[texts], min(row_length, limit), pooled)
        return pooled

    def _encode_rows(self, ids, chunks, lengths, counts, row_length: int, pooled: np.ndarray) -> None:
        slots = max(self._slots, int(2 ** np.ceil(np.log2(counts.max()))))
        placed = pack(lengths[chunks], counts, rows=len(counts), length=row_length, slots=slots)
        rows_at_once = max(self._batch_tokens // row_length, 1)
        for first_row in range(0, int(placed.row.max()) + 1, rows_at_once):
            inside = np.flatnonzero((placed.row >= first_row) & (placed.row < first_row + rows_at_once))
            shape = (rows_at_once, row_length)
            batch = {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions", "chunk_ids")}
            batch["tokens"] = np.full(shape, self.vocabulary.pad_id, np.int32)
            for place in inside:
                row, column, kept = placed.row[place] - first_row, placed.column[place], placed.kept[place]
                cells = slice(column, column + kept)
                batch["tokens"][row, cells] = ids[chunks[place]][:kept]
                batch["segment_ids"][row, cells] = placed.segment[place]
                batch["positions"][row, cells] = np.arange(placed.position[place], placed.position[place] + kept)
                batch["chunk_ids"][row, cells] = placed.slot[place] + 1
                if placed.position[place] > 0:  # a chunk after another: the separator stands between them
                    batch["tokens"][row, column - 1] = self.vocabulary.separator_id
                    batch["segment_ids"][row, column - 1] = placed.segment[place]
                    batch["positions"][row, column - 1] = placed.position[place] - 1
            vectors = np.asarray(_embed(self._model, jax.tree.map(jnp.asarray, batch), slots))
            pooled[chunks[inside]] = vectors[placed.row[inside] - first_row, placed.slot[inside]]


def _as_list(texts: Sequence[str], what: str) -> list[str]:
    if isinstance(texts, str):
        raise BadInput(f"{what} is a single str; pass a list of str")
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise BadInput(f"{what}: entry {place} is a {type(text).__name__}, not a str")
    return listed
