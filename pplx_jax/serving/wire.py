"""Requests and replies as they are on the wire: JSON to `Request`, vectors to JSON."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.kernels.quantization import BitOrder, pack_bits, quantize
from pplx_jax.serving.errors import RequestError

ENCODINGS = ("float", "base64", "base64_int8", "base64_binary")
FIELDS = ("input", "model", "dimensions", "encoding_format", "bit_order", "user")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Most of everything in a request.

    Attributes:
        body_bytes: bytes of its JSON.
        inputs: texts, or documents.
        chunks: chunks of all its documents.
        tokens: tokens of all its texts; a single text or document is bounded by the model's length.
    """

    body_bytes: int = 16 << 20
    inputs: int = 2048
    chunks: int = 16384
    tokens: int = 1 << 19


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that can be answered.

    Attributes:
        documents: each a list of chunks; a plain text is a document of one.
        contextual: whether documents were sent, so that the reply has them too.
        dims: first dimensions asked for.
        encoding: one of ENCODINGS.
        bit_order: of "base64_binary".
    """

    documents: list[list[str]]
    contextual: bool
    dims: int
    encoding: str
    bit_order: BitOrder


def parse(body: bytes, *, contextual: bool, model: str, dims: int, limits: Limits) -> Request:
    """Reads a request.

    Args:
        body: its JSON.
        contextual: whether `input` is documents.
        model: the name of the model that is served.
        dims: its dimensions.
        limits: what is refused as too much.

    Raises:
        RequestError: it cannot be answered; the message says why.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestError(400, "the body is not JSON: nested too deep", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"the body is not a JSON object but {type(fields).__name__}", code="invalid_json")
    for name in fields:
        if name not in FIELDS:
            raise _wrong(name, f"there is no such field; known are {', '.join(FIELDS)}")
    asked = fields.get("model", model)
    if asked != model:
        raise RequestError(
            404, f"model {asked!r} is not served here, {model!r} is", param="model", code="model_not_found"
        )
    documents = _documents(fields.get("input"), limits) if contextual else _texts(fields.get("input"), limits)
    width = fields.get("dimensions")
    width = dims if width is None else width
    if not isinstance(width, int) or isinstance(width, bool) or not 0 < width <= dims:
        raise _wrong("dimensions", f"{width!r} is not a whole number from 1 to {dims}")
    encoding = fields.get("encoding_format") or "float"
    if encoding not in ENCODINGS:
        raise _wrong("encoding_format", f"{encoding!r} is not one of {', '.join(ENCODINGS)}")
    if encoding == "base64_binary" and width % 8:
        raise _wrong("dimensions", f"{width} bits do not fill whole bytes; ask for a multiple of 8")
    bit_order = fields.get("bit_order") or "little"
    if bit_order not in ("little", "big"):
        raise _wrong("bit_order", f"{bit_order!r} is neither 'little' nor 'big'")
    return Request(documents, contextual, width, encoding, bit_order)


def _texts(given: Any, limits: Limits) -> list[list[str]]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _wrong("input", "give a text or a list of at least one text")
    if isinstance(given[0], int) or (isinstance(given[0], list) and all(isinstance(entry, int) for entry in given[0])):
        raise _wrong("input", "token ids are not taken, as they belong to another vocabulary; send texts")
    if isinstance(given[0], list):
        raise _wrong("input", "documents of chunks belong to /v1/contextualizedembeddings")
    if len(given) > limits.inputs:
        raise RequestError(
            413, f"{len(given)} texts, at most {limits.inputs} are taken", param="input", code="too_large"
        )
    return [[_text(text, f"input[{place}]")] for place, text in enumerate(given)]


def _documents(given: Any, limits: Limits) -> list[list[str]]:
    if not isinstance(given, list) or not given:
        raise _wrong("input", "give a list of documents, each a list of chunks")
    for place, document in enumerate(given):
        if not isinstance(document, list) or not document:
            raise _wrong("input", f"document {place} is not a list of at least one chunk")
    chunks = sum(map(len, given))
    if len(given) > limits.inputs or chunks > limits.chunks:
        message = f"{len(given)} documents of {chunks} chunks, at most {limits.inputs} of {limits.chunks} are taken"
        raise RequestError(413, message, param="input", code="too_large")
    return [
        [_text(chunk, f"input[{place}][{number}]") for number, chunk in enumerate(document)]
        for place, document in enumerate(given)
    ]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong("input", f"{where} is {type(value).__name__}, not a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong("input", f"{where} holds half of a surrogate pair, which is no character")
    return value


def _wrong(param: str, message: str) -> RequestError:
    return RequestError(422, f"{param}: {message}", param=param, code="invalid_value")


def reply(request: Request, vectors: np.ndarray, sizes: Sequence[int], *, model: str, tokens: int) -> bytes:
    """The JSON of an answer.

    Args:
        request: what was asked.
        vectors: [C, D] pooled vectors of all chunks.
        sizes: tokens of each chunk; one without any is marked `"empty": true`.
        model: its name.
        tokens: tokens read.
    """
    embeddings = encode(vectors[:, : request.dims], request.encoding, request.bit_order)
    entries = iter(zip(embeddings, sizes, strict=True))
    data: list[dict[str, Any]] = []
    for place, document in enumerate(request.documents):
        chunks = []
        for number in range(len(document)):
            embedding, size = next(entries)
            entry = {"object": "embedding", "index": number if request.contextual else place, "embedding": embedding}
            chunks.append(entry if size else entry | {"empty": True})
        data += [{"object": "list", "index": place, "data": chunks}] if request.contextual else chunks
    answer: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if request.encoding == "base64_binary":
        answer["bit_order"] = request.bit_order
    answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps(answer, separators=(",", ":")).encode()


def encode(vectors: np.ndarray, encoding: str, bit_order: BitOrder) -> list[Any]:
    """Pooled vectors [n, d] as lists of numbers, or base64 texts."""
    if encoding == "base64_binary":
        rows = pack_bits(vectors, bit_order)
    else:
        rows = quantize(vectors, "int8")
    if encoding == "float":
        return rows.tolist()
    if encoding == "base64":
        rows = rows.astype("<f4")
    return [base64.b64encode(row.tobytes()).decode() for row in rows]
