"""Other embedding models in sentence-transformers folders (BGE, E5, GTE, ...), to compare ours with them."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pplx_jax.checkpoints.huggingface.config import CONFIG
from pplx_jax.checkpoints.huggingface.families import PPLX_MODEL_TYPES
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid
from pplx_jax.core.paths import as_path
from pplx_jax.inference.encoder import check_quantization
from pplx_jax.inference.overflow import Overflow, TooLong, shorter_limit
from pplx_jax.kernels.quantization import Quantization, quantize

MODULES = "modules.json"
_SAFE_VERSION = 6  # earlier ones run the code of a local folder whatever `trust_remote_code` says
_NOT_WEIGHTS = {"onnx", "openvino", "coreml"}


def is_foreign(folder: str | os.PathLike[str]) -> bool:
    """Returns whether this is a sentence-transformers folder of a model other than pplx-embed."""
    folder = as_path(folder)
    if not (folder / MODULES).is_file():
        return False
    config = read_json_if_valid(folder / CONFIG) or {}  # sentence-transformers reports what is wrong with it
    return config.get("model_type") not in PPLX_MODEL_TYPES


@dataclasses.dataclass(frozen=True)
class ForeignLimits:
    """The limits of such a model: maximum tokens of an input, including its prompt, and the dtype of its weights."""

    max_length: int
    dtype: str


class SentenceTransformerEncoder:
    """An `inference.encoder.Encoder` for a sentence-transformers folder. No code of the folder is run.

    Its vectors were not trained with tanh, so "int8" and "tanh" are refused. "none" is what its authors compare by
    cosine, and "binary" keeps the signs.

    Args:
        folder: the folder.
        query_prompt, document_prompt: texts before every query and document. If None, the folder's prompts "query",
            and "document" or "passage", are used.
        max_length: a limit in tokens below the model's; None for the model's.

    Raises:
        BadInput: sentence-transformers is not installed, or cannot open the folder; `max_length` is above the limit.
    """

    quantizations: tuple[Quantization, ...] = ("none", "binary", "ubinary")

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        max_length: int | None = None,
    ):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            line = "needs sentence-transformers: pip install 'pplx-jax[eval]'"
            raise BadInput(f"the model in {folder} {line}") from None
        if int(importlib.metadata.version("sentence-transformers").partition(".")[0]) < _SAFE_VERSION:
            raise BadInput(
                f"sentence-transformers {importlib.metadata.version('sentence-transformers')} runs code of the folder "
                f"{folder} without being asked to; pip install 'sentence-transformers>={_SAFE_VERSION}'"
            )
        folder = local_copy(as_path(folder))
        try:
            model = SentenceTransformer(os.fspath(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"sentence-transformers cannot open {folder}: {reason}; download it again") from None
        self._model = model
        found = model.prompts or {}
        self._prompts = {
            "query": found.get("query") or "",
            "document": found.get("document") or found.get("passage") or "",
        }
        given = {"query": query_prompt, "document": document_prompt}
        self._prompts |= {name: text for name, text in given.items() if text is not None}
        limit = int(model.get_max_seq_length() or model.tokenizer.model_max_length)
        limit = model.max_seq_length = shorter_limit(limit, max_length)
        self.config = ForeignLimits(limit, str(next(model.parameters()).dtype).removeprefix("torch."))
        self.dims = model.get_embedding_dimension() or 0
        self.fingerprint = _fingerprint(folder, self._prompts)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the number of tokens of each text [n], without prompt and special tokens."""
        texts = list(texts)
        encoded = self._model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return np.array([len(ids) for ids in encoded], np.int64)

    def encode(self, texts: Sequence[str], **options) -> np.ndarray:
        """Returns vectors of documents [n, dims]; see `Encoder`."""
        return self._encode(list(texts), "document", **options)

    def encode_queries(self, texts: Sequence[str], **options) -> np.ndarray:
        """Returns vectors of queries [n, dims], with the query prompt."""
        return self._encode(list(texts), "query", **options)

    def encode_documents(self, documents: Sequence[Sequence[str]], **options) -> list[np.ndarray]:
        """Raises BadInput: such a model cannot embed chunks in their document."""
        raise BadInput("this model cannot embed chunks in their document (late chunking); leave --context out")

    def _encode(
        self,
        texts: list[str],
        kind: str,
        *,
        quantization: Quantization = "none",
        dims: int | None = None,
        overflow: Overflow = "error",
        overlap: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        check_quantization(self, quantization)
        if overflow == "split":
            raise BadInput("overflow='split' needs a pplx-embed model; give 'truncate' to cut texts over the limit")
        prompt = self._prompts[kind] if prompt is None else prompt
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
            fix = "shorten it, or truncate texts over the limit (--truncate)"
            raise TooLong(place, int(counts[place]), self.config.max_length, fix=fix)


def _fingerprint(folder: pathlib.Path, prompts: dict[str, str]) -> str:
    """Returns 16 hex digits of the prompts and the files that sentence-transformers reads."""
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode())
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not parts[0].startswith(".") and parts[0] not in _NOT_WEIGHTS:
            if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
                digest.update("/".join(parts).encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
