"""`Embedder`: embeds texts of any mix of lengths. It is the public API of a trained model."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import skip_absent_tpu
from pplx_jax.core.progress import Progress
from pplx_jax.core.prompts import (
    DOCUMENT,
    QUERY,
    merged_prompts,
    prompted_fingerprint,
    with_document_prompt,
    with_prompt,
)
from pplx_jax.inference.blocks import Tokens
from pplx_jax.inference.chunking import chunk
from pplx_jax.inference.encoder import tokens_over_limit
from pplx_jax.inference.encoding_mesh import encoding_mesh
from pplx_jax.inference.overflow import SHORTEN, Overflow, TooLong, shorter_limit
from pplx_jax.inference.packed_encoder import PackedEncoder
from pplx_jax.kernels.attention import Preferred, require_implementation
from pplx_jax.kernels.platform import platform_of
from pplx_jax.kernels.quantization import BitOrder, Quantization, check_form, quantize
from pplx_jax.parallel.gather_rows import gather_ragged
from pplx_jax.parallel.processes import is_first

_TEXTS_TO_SHARE = 64  # fewer are tokenized before they could be sent


class Embedder:
    """Embeds texts, and documents of chunks by late chunking, with the same code path as training.

    Texts are packed into sequences, so the cost of a list depends on its number of tokens, not on its longest text.
    Results are in the order of the input.

    All encoding methods take:
      quantization: "int8" (int8), "binary" (int8 -1 and +1), "ubinary" (packed bits), "tanh" or "none" (float32).
        Embeddings are not normalized: compare them by cosine, "ubinary" by Hamming distance.
      dims: number of leading dimensions, for models trained with MRL; None for all.
      bit_order: of "ubinary": whether the first dimension is the most ("big") or least ("little") significant bit.
      overflow: what happens to a text or document over the model's limit (`config.max_length` tokens). "error" raises
        and names it. "split" encodes overlapping windows and pools every token once. "truncate" cuts the longest
        chunks.
      overlap: minimum tokens shared by the windows of "split"; None for an eighth of the model's limit.
      progress: whether to report progress on standard error.
      prompt_name: the prompt to put before the texts, by its name in `prompts`. `encode` has none by default,
        `encode_queries` has "query", and `encode_documents` has "document" before the first chunk.
      prompt: the text of a prompt, in place of `prompt_name`; "" for none. Empty texts take no prompt.

    Args:
      model: a loaded model.
      batch_tokens: tokens per device in a forward pass.
      slots: maximum number of texts or chunks in a sequence.
      mesh: the devices, such as `jax.sharding.Mesh(jax.local_devices()[:1], ("data",))` for one; see `PackedEncoder`.
        None for all devices of this process. Each has a copy of the parameters if it has the memory for one.
      shared: whether all processes of the job make every call together, with the same texts. Each then encodes a share
        of them, and all of them return all embeddings.
      prompts: name -> text, in place of those of the model. "" removes one; None keeps it.
      max_length: a limit in tokens below the model's, which `config` then has; None for the model's.
      deterministic: whether the embedding of a text or document has the same bits whatever else is in the call, on one
        kind of device. Each then has a forward pass by itself, of a shape that depends only on its own length, which is
        slower for short texts. Otherwise texts share passes, and the last bits depend on the others.
      attention_implementation: of `kernels.attention`, such as "splash" on a TPU; None for that of the model.

    Attributes:
      prompts: name -> text of the prompts that are not empty.

    Example:
      >>> model = Embedder.load("quickstart_run/merged")
      >>> model.encode(["read a file line by line"]).dtype
      dtype('int8')
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_tokens: int = 8192,
        slots: int = 64,
        mesh: jax.sharding.Mesh | None = None,
        shared: bool = False,
        prompts: Mapping[str, str | None] | None = None,
        max_length: int | None = None,
        deterministic: bool = False,
        attention_implementation: Preferred | None = None,
    ):
        limit = shorter_limit(model.config.max_length, max_length)
        mesh = encoding_mesh(model.params, model.config.dtype, everywhere=shared) if mesh is None else mesh
        if attention_implementation is not None:
            require_implementation(attention_implementation, platform_of(mesh.devices.flat[0].device_kind))
        self.config = dataclasses.replace(
            model.config,
            max_length=limit,
            attention_implementation=attention_implementation or model.config.attention_implementation,
        )
        self.vocabulary = model.vocabulary
        self.kind = model.kind
        self.prompts = merged_prompts(model.prompts, prompts or {}, "Embedder")
        same = self.prompts == dict(model.prompts)
        self.fingerprint = (
            model.fingerprint if same else prompted_fingerprint(model.unprompted_fingerprint, self.prompts)
        )
        self._shared = shared and jax.process_count() > 1
        self._encoder = PackedEncoder(
            self.config,
            model.params,
            pad_id=model.vocabulary.pad_id,
            separator_id=model.vocabulary.separator_id,
            batch_tokens=batch_tokens,
            slots=slots,
            mesh=mesh,
            shared=shared,
            alone=deterministic,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments) -> "Embedder":
        """Loads a model folder (of a stage, merge or import), one of its Orbax checkpoints, or a Hugging Face folder
        that `import-hf` accepts.

        Raises:
          BadInput: the folder or a file in it is missing or damaged.
        """
        skip_absent_tpu()  # else libtpu, where it is installed without a TPU, prints long errors
        return cls(load_model(path), **arguments)  # type: ignore[arg-type]

    @property
    def dims(self) -> int:
        """Number of dimensions of an embedding."""
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
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Returns one embedding per text. Each text is encoded alone.

        An empty text gives a zero vector (all +1 for "binary" and "ubinary", which have no zero) and a warning.
        `is_empty` finds such texts.

        Returns:
          [n, dims], or [n, dims / 8] for "ubinary".

        Raises:
          BadInput: a text is over the model's limit or not a valid str (the message has its index), `texts` is a str,
            `dims` is invalid, there is no such prompt, or the weights give a non-finite vector.
        """
        texts = with_prompt(_as_list(texts, "texts"), self.prompt_text(prompt_name, prompt))
        check_form(quantization, dims, self.dims, bit_order)
        if overflow == "error":
            self._refuse_by_length(([text] for text in texts), "text")
        ids = self._tokenize(texts)
        empty = [f"text {index}" for index, chunk in enumerate(ids) if not len(chunk)]
        pooled = self._pool(ids, np.ones(len(ids), np.int64), "text", empty, overflow, overlap, progress)
        return quantize(pooled[:, :dims], quantization, bit_order)

    def encode_queries(self, queries: Iterable[str], **options: Any) -> np.ndarray:
        """Returns embeddings of queries: `encode` with the prompt "query", if the model has one.

        Queries need no other model. For a context model, a query is a document of one chunk.
        """
        options.setdefault("prompt_name", QUERY)
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
        prompt_name: str | None = DOCUMENT,
        prompt: str | None = None,
    ) -> list[np.ndarray]:
        """Returns one embedding per chunk, computed in the context of the whole document (late chunking).

        Args:
          documents: each a list of chunks in order. They are joined by the separator token. A chunk that contains the
            name of the separator stays one chunk. `chunk` splits a text into chunks.

        Returns:
          [n_chunks, dims] for each document; an empty chunk gives a zero vector, as in `encode`.

        Raises:
          BadInput: a document is over the model's limit; the message has its index.
        """
        documents = [_as_list(document, f"document {i}") for i, document in enumerate(documents)]
        documents = with_document_prompt(documents, self.prompt_text(prompt_name, prompt))
        check_form(quantization, dims, self.dims, bit_order)
        counts = np.array([len(document) for document in documents], np.int64)
        if overflow == "error":
            self._refuse_by_length(documents, "document")
        ids = self._tokenize([chunk for document in documents for chunk in document])
        names = ((document, index) for document, count in enumerate(counts) for index in range(count))
        empty = [f"document {d}, chunk {c}" for (d, c), chunk in zip(names, ids, strict=True) if not len(chunk)]
        pooled = self._pool(ids, counts, "document", empty, overflow, overlap, progress)
        flat = quantize(pooled[:, :dims], quantization, bit_order)
        return np.split(flat, np.cumsum(counts)[:-1]) if documents else []

    def prompt_text(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """Returns the text of a prompt: `prompt` if it is given, else that of `prompt_name`; "" if both are None.

        Raises:
          BadInput: the model has no such prompt. "query" and "document" are never missing, but may be empty.
        """
        if prompt is not None or prompt_name is None:
            return prompt or ""
        if prompt_name not in (QUERY, DOCUMENT, *self.prompts):
            known = ", ".join(dict.fromkeys((QUERY, DOCUMENT, *self.prompts)))
            raise BadInput(f"the model has no prompt {prompt_name!r}; it has {known}; or give the text as prompt=...")
        return self.prompts.get(prompt_name, "")

    def encode_tokens(self, ids: Sequence[Tokens], counts: np.ndarray | None = None) -> np.ndarray:
        """Returns pooled vectors [n, D] float32 of texts given as token ids.

        Args:
          ids: token ids of each text, or of each chunk of all documents.
          counts: int64, number of chunks of each document; None if every text is encoded alone.

        Raises:
          BadInput: a text is over the model's limit, or has an id that is not an integer from 0 to the size of the
            model's table; or the counts are not those of all chunks.
        """
        checked = [self._checked(text, place) for place, text in enumerate(ids)]
        counts = np.ones(len(checked), np.int64) if counts is None else np.asarray(counts)
        whole = counts.ndim == 1 and (counts.dtype.kind in "iu" or not counts.size)
        if not whole or (counts < 0).any() or counts.sum() != len(checked):
            raise BadInput(f"counts must be one-dimensional integers that add up to the {len(checked)} chunks of ids")
        return self._encoder.pool(checked, counts.astype(np.int64))

    def shapes(self, most_tokens: int) -> list[tuple[int, int, int]]:
        """Returns the shapes (rows, length, slots) of the forward passes of at most so many tokens, for `compile`."""
        return self._encoder.shapes(most_tokens)

    def compile(self, shape: tuple[int, int, int]) -> None:
        """Compiles the forward pass of one of `shapes`, so that no later call waits for that."""
        self._encoder.compile(shape)

    def _checked(self, text: Tokens, place: int) -> np.ndarray:
        """Returns token ids int32 [L]. Raises BadInput if they are not ids of the model."""
        try:
            ids = np.asarray(text)
        except (TypeError, ValueError, OverflowError):
            ids = np.zeros((), object)
        if not ids.size and ids.ndim == 1:
            return np.zeros(0, np.int32)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise BadInput(f"ids of text {place} are {ids.dtype}{list(ids.shape)}; give a list of integers")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            wrong = int(ids[(ids < 0) | (ids >= self.config.vocab_size)][0])
            raise BadInput(f"ids of text {place} have {wrong}; the model has ids 0 to {self.config.vocab_size - 1}")
        return ids.astype(np.int32)

    def count_tokens(self, texts: Iterable[str]) -> np.ndarray:
        """Returns the number of tokens of each text [n].

        Raises:
          BadInput: a text is not a valid str, or `texts` is a str.
        """
        return np.array([len(ids) for ids in self._tokenize(_as_list(texts, "texts"))], np.int64)

    def is_empty(self, texts: Iterable[str]) -> np.ndarray:
        """Returns bool [n], whether a text has no tokens. The embedding of such a text is a zero vector."""
        return self.count_tokens(texts) == 0

    def chunk(self, text: str, tokens: int = 256) -> list[str]:
        """Splits a text into chunks of at most `tokens` tokens, at sentence ends; see `inference.chunking`."""
        return chunk(text, tokens, count_tokens=self.count_tokens)

    def _refuse_by_length(self, documents: Iterable[Sequence[str]], noun: str) -> None:
        for place, chunks in enumerate(documents):
            if tokens := tokens_over_limit(self, chunks):
                raise TooLong(place, tokens, self.config.max_length, noun=noun, fix=SHORTEN, at_least=True)

    def _tokenize(self, texts: list[str]) -> Sequence[Tokens]:
        """Returns the token ids of each text. If the texts are shared, every process makes those of a part of them."""
        if not self._shared or len(texts) < _TEXTS_TO_SHARE:
            return self.vocabulary.encode_batch(texts)
        ends = np.cumsum([len(text) for text in texts])
        processes = jax.process_count()
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, processes) / processes)
        bounds = [0, *cuts.tolist(), len(texts)]
        own = slice(bounds[jax.process_index()], bounds[jax.process_index() + 1])
        return gather_ragged(self.vocabulary.encode_batch(texts[own]), np.diff(bounds).tolist())

    def _pool(self, ids, counts, noun: str, empty: list[str], overflow, overlap, progress: bool) -> np.ndarray:
        if empty:
            logging.warning(
                "%d of %d texts have no tokens and give zero vectors; the first is %s", len(empty), len(ids), empty[0]
            )
        with Progress("encode", len(counts), noun, enabled=progress and is_first()) as report:
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
        raise BadInput(f"{what} is a single str; give a list of str")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise BadInput(f"{what}: entry {index} is a {type(text).__name__}, not a str")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{what}: entry {index} contains half of a surrogate pair") from None
    return listed
