"""Work that one process does with an encoder that all processes share."""

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.encoder import Encoder
from pplx_jax.parallel.gather_rows import broadcast_bytes
from pplx_jax.parallel.processes import is_first

_Encoder = TypeVar("_Encoder", bound=Encoder | None)
_Result = TypeVar("_Result")
_END = {"method": None}
_leading = False


def leads() -> bool:
    """Returns whether this process is the one that runs the work of `lead`. A single process does, without JAX."""
    return not jax.distributed.is_initialized() or is_first()


def lead(encoder: _Encoder, work: Callable[[_Encoder], _Result]) -> _Result | None:
    """Runs `work` on process 0. All processes encode the texts that it gives to the encoder. Collective.

    So only process 0 reads the texts and writes the results, and `work` needs to know nothing of processes. It may have
    more done by all of them with `called_by_others`.

    Args:
      encoder: an `Embedder` that every process loaded with `shared=True`. Process 0 uses another encoder alone.
      work: takes the encoder.

    Returns:
      The result of `work`; None on the other processes.
    """
    global _leading
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return work(encoder)
    shared = isinstance(encoder, Embedder)
    if not is_first():
        _follow(encoder if shared else None)
        return None
    _leading = True
    try:
        result = work(cast(_Encoder, _Leader(encoder)) if shared else encoder)
    finally:
        _leading = False
    _send(_END)
    return result


def called_by_others(function: Callable[[], None]) -> bool:
    """Makes the processes that follow `lead` call a function, which exchanges data with process 0. Collective.

    Args:
      function: of a module, so that every process finds it by its name. It returns when process 0 tells it to.

    Returns:
      Whether there are such processes. The caller is process 0, inside `work`.
    """
    if _leading:
        _send({"function": [function.__module__, function.__qualname__]})
    return _leading


def _follow(embedder: Embedder | None) -> None:
    """Makes the calls of process 0 until it ends."""
    while (request := json.loads(broadcast_bytes(b"").decode("utf-8", "surrogatepass"))) != _END:
        if "function" in request:
            module, name = request["function"]
            getattr(importlib.import_module(module), name)()
            continue
        try:
            getattr(embedder, request["method"])(request["texts"], **request["options"])
        except BadInput:  # process 0 raises the same error, and may go on after it
            continue


class _Leader:
    """An `inference.encoder.Encoder` on process 0 that has every call made by all processes."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder
        self.config, self.dims = embedder.config, embedder.dims
        self.kind, self.fingerprint, self.prompts = embedder.kind, embedder.fingerprint, embedder.prompts

    def count_tokens(self, texts: Iterable[str]) -> np.ndarray:
        return self._call("count_tokens", list(texts), {})

    def encode(self, texts: Iterable[str], **options: Any) -> np.ndarray:
        return self._call("encode", list(texts), options)

    def encode_queries(self, queries: Iterable[str], **options: Any) -> np.ndarray:
        return self._call("encode_queries", list(queries), options)

    def encode_documents(self, documents: Iterable[Sequence[str]], **options: Any) -> list[np.ndarray]:
        return self._call("encode_documents", [list(document) for document in documents], options)

    def _call(self, method: str, texts: list[Any], options: dict[str, Any]) -> Any:
        _send({"method": method, "texts": texts, "options": options})
        return getattr(self._embedder, method)(texts, **options)


def _send(request: dict[str, Any]) -> None:
    broadcast_bytes(json.dumps(request, ensure_ascii=False, default=int).encode("utf-8", "surrogatepass"))
