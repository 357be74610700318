"""Parses the JSON of requests and writes the JSON of replies."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.quantization import BitOrder, pack_bits, quantize
from pplx_jax.serving.errors import RequestError

ENCODINGS = ("float", "base64", "base64_int8", "base64_binary")
FIELDS = ("input", "model", "dimensions", "encoding_format", "bit_order", "prompt_name", "user")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request. The defaults for texts are those of the hosted API.

    Attributes:
        body_bytes: bytes of its JSON.
        inputs: number of texts or documents.
        chunks: number of chunks of all documents.
        document_tokens: tokens of a text or document, if the model's own limit is not lower.
        tokens: tokens of all texts.
    """

    body_bytes: int = 16 << 20
    inputs: int = 512
    chunks: int = 16_000
    document_tokens: int = 1 << 15
    tokens: int = 120_000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise BadInput(f"max_{field.name}={getattr(self, field.name)}: give at least 1")


@dataclasses.dataclass(frozen=True)
class Request:
    """A valid request.

    Attributes:
        documents: each a list of chunks. A text is a document of one chunk.
        contextual: whether the request has documents; the reply then has them too.
        dims: number of leading dimensions.
        encoding: one of ENCODINGS.
        bit_order: of "base64_binary".
        prompt_name: the prompt to put before the texts; None if the request names none.
    """

    documents: list[list[str]]
    contextual: bool
    dims: int
    encoding: str
    bit_order: BitOrder
    prompt_name: str | None = None


def parse(body: bytes, *, contextual: bool, model: str, dims: int, limits: Limits) -> Request:
    """Parses a request.

    Args:
        body: its JSON.
        contextual: whether `input` is a list of documents.
        model: the name of the served model.
        dims: the model's number of dimensions.
        limits: of a request.

    Raises:
        RequestError: the request is invalid or exceeds a limit.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestError(400, "the body is not JSON: nested too deeply", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"the body is not a JSON object but {type(fields).__name__}", code="invalid_json")
    for name in fields:
        if name not in FIELDS:
            raise _wrong(name, f"unknown field; the fields are {', '.join(FIELDS)}")
    requested = fields.get("model", model)
    if requested != model:
        raise RequestError(
            404, f"model {requested!r} is not served here; use {model!r}", param="model", code="model_not_found"
        )
    documents = _documents(fields.get("input"), limits) if contextual else _texts(fields.get("input"), limits)
    width = fields.get("dimensions")
    width = dims if width is None else width
    if not isinstance(width, int) or isinstance(width, bool) or not 0 < width <= dims:
        raise _wrong("dimensions", f"{width!r} is not an integer from 1 to {dims}")
    encoding = fields.get("encoding_format") or "float"
    if encoding not in ENCODINGS:
        raise _wrong("encoding_format", f"{encoding!r} is not one of {', '.join(ENCODINGS)}")
    if encoding == "base64_binary" and width % 8:
        raise _wrong("dimensions", f"{width} bits do not fill whole bytes; give a multiple of 8")
    bit_order = fields.get("bit_order") or "little"
    if bit_order not in ("little", "big"):
        raise _wrong("bit_order", f"{bit_order!r} is neither 'little' nor 'big'")
    prompt_name = fields.get("prompt_name")
    if prompt_name is not None and not isinstance(prompt_name, str):
        raise _wrong("prompt_name", f"{prompt_name!r} is not a name")
    return Request(documents, contextual, width, encoding, bit_order, prompt_name)


def _texts(given: Any, limits: Limits) -> list[list[str]]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _wrong("input", "give a text or a list of at least one text")
    if isinstance(given[0], int) or (isinstance(given[0], list) and all(isinstance(entry, int) for entry in given[0])):
        raise _wrong("input", "token ids are not supported; send texts")
    if isinstance(given[0], list):
        raise _wrong("input", "send documents of chunks to /v1/contextualizedembeddings")
    if len(given) > limits.inputs:
        raise RequestError(
            413, f"{len(given)} texts exceed the limit of {limits.inputs}; send fewer", param="input", code="too_large"
        )
    return [[_text(text, f"input[{index}]")] for index, text in enumerate(given)]


def _documents(given: Any, limits: Limits) -> list[list[str]]:
    if not isinstance(given, list) or not given:
        raise _wrong("input", "give a list of documents, each a list of chunks")
    for index, document in enumerate(given):
        if not isinstance(document, list) or not document:
            raise _wrong("input", f"document {index} is not a list of at least one chunk")
    chunks = sum(map(len, given))
    if len(given) > limits.inputs or chunks > limits.chunks:
        most = f"{limits.inputs} documents and {limits.chunks} chunks"
        message = f"{len(given)} documents with {chunks} chunks exceed the limit of {most}; send fewer"
        raise RequestError(413, message, param="input", code="too_large")
    return [
        [_text(chunk, f"input[{index}][{number}]") for number, chunk in enumerate(document)]
        for index, document in enumerate(given)
    ]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong("input", f"{where} is {type(value).__name__}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong("input", f"{where} contains half of a surrogate pair")
    return value


def _wrong(param: str, message: str) -> RequestError:
    return RequestError(422, f"{param}: {message}", param=param, code="invalid_value")


def reply(request: Request, vectors: np.ndarray, sizes: Sequence[int], *, model: str, tokens: int) -> bytes:
    """Returns the JSON of a reply.

    Args:
        request: the request.
        vectors: [C, D] pooled vectors of all chunks.
        sizes: tokens of each chunk. A chunk without tokens is marked `"empty": true`.
        model: name of the model.
        tokens: total number of tokens.
    """
    embeddings = encode(vectors[:, : request.dims], request.encoding, request.bit_order)
    entries = iter(zip(embeddings, sizes, strict=True))
    data: list[dict[str, Any]] = []
    for index, document in enumerate(request.documents):
        chunks = []
        for number in range(len(document)):
            embedding, size = next(entries)
            entry = {"object": "embedding", "index": number if request.contextual else index, "embedding": embedding}
            chunks.append(entry if size else entry | {"empty": True})
        data += [{"object": "list", "index": index, "data": chunks}] if request.contextual else chunks
    answer: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if request.encoding == "base64_binary":
        answer["bit_order"] = request.bit_order
    answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps(answer, separators=(",", ":")).encode()


def encode(vectors: np.ndarray, encoding: str, bit_order: BitOrder) -> list[Any]:
    """Converts pooled vectors [n, d] to lists of numbers or base64 strings."""
    if encoding == "base64_binary":
        rows = pack_bits(vectors, bit_order)
    else:
        rows = quantize(vectors, "int8")
    if encoding == "float":
        return rows.tolist()
    if encoding == "base64":
        rows = rows.astype("<f4")
    return [base64.b64encode(row.tobytes()).decode() for row in rows]
