"""Embedding models of others, as sentence-transformers opens them, to be scored beside ours (BGE, E5, GTE, ...)."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pplx_jax.checkpoints.huggingface.config import CONFIG
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid
from pplx_jax.inference.encoder import check_quantization
from pplx_jax.inference.overflow import Overflow, TooLong
from pplx_jax.kernels.quantization import Quantization, quantize

MODULES = "modules.json"
_OURS = "bidirectional_pplx_qwen3"
_NOT_WEIGHTS = {"onnx", "openvino", "coreml"}


def is_foreign(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a sentence-transformers folder of a model that is no pplx-embed."""
    folder = pathlib.Path(folder)
    if not (folder / MODULES).is_file():
        return False
    config = read_json_if_valid(folder / CONFIG) or {}  # sentence-transformers reports what is wrong with it
    return config.get("model_type") != _OURS


@dataclasses.dataclass(frozen=True)
class ForeignLimits:
    """What is known of such a model: tokens of the longest input, those of its prompt included, and its precision."""

    max_length: int
    dtype: str


class SentenceTransformerEncoder:
    """A `inference.encoder.Encoder` over a sentence-transformers folder; no code of the folder is run.

    Its vectors were not trained to be rounded by tanh, so "int8" and "tanh" are refused; "none" is what its
    publishers compare by cosine, and "binary" keeps the signs.

    Args:
        folder: the folder.
        query_prompt, document_prompt: what stands before every query and document; what the folder names "query",
            and "document" or "passage", where empty.

    Raises:
        BadInput: the library is missing, or it cannot open the folder.
    """

    quantizations: tuple[Quantization, ...] = ("none", "binary", "ubinary")

    def __init__(self, folder: str | os.PathLike[str], *, query_prompt: str = "", document_prompt: str = ""):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            line = "needs sentence-transformers: pip install 'pplx-jax[eval]'"
            raise BadInput(f"the model in {folder} {line}") from None
        try:
            model = SentenceTransformer(os.fspath(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"sentence-transformers cannot open {folder}: {reason}; is the folder whole?") from None
        self._model = model
        found = model.prompts or {}
        self._prompts = {
            "query": query_prompt or found.get("query") or "",
            "document": document_prompt or found.get("document") or found.get("passage") or "",
        }
        limit = model.get_max_seq_length() or model.tokenizer.model_max_length
        self.config = ForeignLimits(int(limit), str(next(model.parameters()).dtype).removeprefix("torch."))
        self.dims = model.get_embedding_dimension() or 0
        self.fingerprint = _fingerprint(pathlib.Path(folder), self._prompts)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text [n], without prompt and special tokens."""
        texts = list(texts)
        encoded = self._model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return np.array([len(ids) for ids in encoded], np.int64)

    def encode(self, texts: Sequence[str], **options) -> np.ndarray:
        """Vectors of documents [n, dims]; see `Encoder`."""
        return self._encode(list(texts), "document", **options)

    def encode_queries(self, texts: Sequence[str], **options) -> np.ndarray:
        """Vectors of queries [n, dims]: with the query's prompt."""
        return self._encode(list(texts), "query", **options)

    def encode_documents(self, documents: Sequence[Sequence[str]], **options) -> list[np.ndarray]:
        """Refused: such a model embeds a chunk alone."""
        raise BadInput("this model embeds no chunks in their document (late chunking); score it without --context")

    def _encode(
        self,
        texts: list[str],
        kind: str,
        *,
        quantization: Quantization = "none",
        dims: int | None = None,
        overflow: Overflow = "error",
        overlap: int | None = None,
    ) -> np.ndarray:
        check_quantization(self, quantization)
        if overflow == "split":
            raise BadInput("overflow='split' is of pplx-embed models; give 'truncate' to cut texts past the limit")
        prompt = self._prompts[kind]
        if overflow == "error":
            self._check_lengths(texts, prompt)
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        pooled = encode(texts, prompt=prompt, show_progress_bar=False) if texts else np.zeros((0, self.dims))
        return quantize(np.asarray(pooled, np.float32)[:, :dims], quantization)

    def _check_lengths(self, texts: list[str], prompt: str) -> None:
        counts = self.count_tokens([prompt + text for text in texts])
        counts += self._model.tokenizer.num_special_tokens_to_add(pair=False)
        if len(counts) and counts.max() > self.config.max_length:
            place = int(counts.argmax())
            mend = "cut it, or truncate texts past the limit (--truncate)"
            raise TooLong(place, int(counts[place]), self.config.max_length, mend=mend)


def _fingerprint(folder: pathlib.Path, prompts: dict[str, str]) -> str:
    """16 hex digits of the files sentence-transformers reads and the prompts."""
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode())
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not parts[0].startswith(".") and parts[0] not in _NOT_WEIGHTS:
            if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
                digest.update("/".join(parts).encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
