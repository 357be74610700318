"""`Embedder`: texts in, embeddings out, in any mix of lengths; the face of a trained model."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from pplx_jax.checkpoints.model_folder import ModelFolder, load_model
from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.inference.overflow import Overflow
from pplx_jax.inference.packed_encoder import PackedEncoder, Tokens
from pplx_jax.kernels.quantization import BitOrder, Quantization, check_form, quantize


class Embedder:
    """Embeds texts, and documents of chunks by late chunking, through the same path as training.

    Texts are packed in rows, shortest rows first, so a list of any mix of lengths costs about its tokens; order is
    kept outside, and number out equals number in.

    Every method that encodes takes:
      quantization: "int8" (int8), "binary" (int8 of -1 and +1), "ubinary" (packed bits), "tanh" or "none"
        (float32). Embeddings are not normalised: compare them by cosine, "ubinary" by Hamming distance.
      dims: a prefix of the dimensions, for models trained with MRL; all where None.
      bit_order: of "ubinary": "big" or "little", which bit of a byte the first dimension is.
      overflow: what happens to a text or document over the model's length (`config.max_length` tokens). "error"
        raises and names it; "split" encodes overlapping windows of it and pools every token once, none lost;
        "truncate" cuts its longest chunks.
      overlap: tokens that the windows of "split" share at least; an eighth of the model's length where None.
      progress: whether to report on standard error how far it is.

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
        self._encoder = PackedEncoder(
            folder.config,
            folder.params,
            pad_id=folder.vocabulary.pad_id,
            separator_id=folder.vocabulary.separator_id,
            batch_tokens=batch_tokens,
            slots=slots,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments) -> "Embedder":
        """Loads a model folder (a stage's, a merge's, an import's), one of its Orbax checkpoints, or a Hugging Face
        folder that could be imported.

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
        texts: Iterable[str],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        overflow: Overflow = "error",
        overlap: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """One embedding a text, each encoded alone.

        The empty text gives a zero vector ("binary" and "ubinary", which have no zero: all +1) and a warning;
        `is_empty` tells which texts are.

        Returns:
          [n, dims], or [n, dims / 8] for "ubinary".

        Raises:
          BadInput: a text over the model's length, or no str of whole characters, named by its place; a str in place
            of a list; bad dims; weights that give a vector that is not finite.
        """
        texts = _as_list(texts, "texts")
        check_form(quantization, dims, self.dims, bit_order)
        ids = self.vocabulary.encode_batch(texts)
        empty = [f"text {place}" for place, chunk in enumerate(ids) if not len(chunk)]
        pooled = self._pool(ids, np.ones(len(ids), np.int64), "text", empty, overflow, overlap, progress)
        return quantize(pooled[:, :dims], quantization, bit_order)

    def encode_queries(self, queries: Iterable[str], **options) -> np.ndarray:
        """Embeddings of queries, for texts and for chunks alike: `encode`, under the name that searchers look for.

        No prefix, no other model: a context model's query is a document of one chunk, which this is.
        """
        return self.encode(queries, **options)

    def encode_documents(
        self,
        documents: Iterable[Sequence[str]],
        *,
        quantization: Quantization = "int8",
        dims: int | None = None,
        bit_order: BitOrder = "big",
        overflow: Overflow = "error",
        overlap: int | None = None,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """One embedding a chunk, each chunk seeing its whole document (late chunking).

        Args:
          documents: each a list of chunks in order; they are joined by the separator token, and only there: a
            chunk that holds the separator's name stays one chunk. `chunk` makes chunks of a text.

        Returns:
          For each document [n_chunks, dims]; an empty chunk is a zero vector, as in `encode`.

        Raises:
          BadInput: a document over the model's length, named by its place.
        """
        documents = [_as_list(document, f"document {i}") for i, document in enumerate(documents)]
        check_form(quantization, dims, self.dims, bit_order)
        counts = np.array([len(document) for document in documents], np.int64)
        ids = self.vocabulary.encode_batch([chunk for document in documents for chunk in document])
        names = ((document, place) for document, count in enumerate(counts) for place in range(count))
        empty = [f"document {d}, chunk {c}" for (d, c), chunk in zip(names, ids, strict=True) if not len(chunk)]
        pooled = self._pool(ids, counts, "document", empty, overflow, overlap, progress)
        flat = quantize(pooled[:, :dims], quantization, bit_order)
        return np.split(flat, np.cumsum(counts)[:-1]) if documents else []

    def encode_tokens(self, ids: Sequence[Tokens], counts: np.ndarray | None = None) -> np.ndarray:
        """Pooled vectors v [n, D] float32 of texts that are token ids already.

        Args:
          ids: token ids of each text, or of each chunk, document after document.
          counts: int64, chunks of each document; None where every text stands alone.

        Raises:
          BadInput: a text over the model's length.
        """
        return self._encoder.pool(ids, np.ones(len(ids), np.int64) if counts is None else counts)

    def count_tokens(self, texts: Iterable[str]) -> np.ndarray:
        """Tokens of each text [n].

        Raises:
          BadInput: a text is no str of whole characters; a str in place of a list.
        """
        return np.array([len(ids) for ids in self.vocabulary.encode_batch(_as_list(texts, "texts"))], np.int64)

    def is_empty(self, texts: Iterable[str]) -> np.ndarray:
        """Which texts have no tokens, bool [n]: their embedding says nothing and is a zero vector."""
        return self.count_tokens(texts) == 0

    def chunk(self, text: str, tokens: int = 256) -> list[str]:
        """Cuts a text in chunks of at most `tokens` tokens, at sentence ends: see `pplx_jax.inference.chunking`."""
        from pplx_jax.inference.chunking import chunk  # `models` otherwise stands under `retrieval`

        return chunk(text, tokens, count_tokens=self.count_tokens)

    def _pool(self, ids, counts, noun: str, empty: list[str], overflow, overlap, progress: bool) -> np.ndarray:
        if empty:
            logging.warning("%d of %d texts have no tokens: zero vectors, from %s on", len(empty), len(ids), empty[0])
        with Progress("encode", len(counts), noun, enabled=progress) as report:
            texts_done, tokens_done = 0, 0

            def done(texts: int, tokens: int) -> None:
                nonlocal texts_done, tokens_done
                texts_done, tokens_done = texts_done + texts, tokens_done + tokens
                report.update(texts_done, tokens=tokens_done)

            pooled = self._encoder.pool(ids, counts, overflow=overflow, overlap=overlap, noun=noun, done=done)
            report.update(len(counts), tokens=tokens_done)
            return pooled


def _as_list(texts: Iterable[str], what: str) -> list[str]:
    if isinstance(texts, str):
        raise BadInput(f"{what} is a single str; pass a list of str")
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise BadInput(f"{what}: entry {place} is a {type(text).__name__}, not a str")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{what}: entry {place} holds half of a surrogate pair, which is no character") from None
    return listed
