"""The HTTP routes for one model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import numpy as np
from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.core.prompts import with_document_prompt
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.encoder import document_tokens, tokens_over_limit
from pplx_jax.inference.packed_encoder import Tokens
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.searchable_index import SearchableIndex
from pplx_jax.serving import wire
from pplx_jax.serving.batching import Batcher
from pplx_jax.serving.errors import RequestError
from pplx_jax.serving.metrics import KIND, Metrics
from pplx_jax.serving.search_page import SearchPage

# Read up to 4 times the limit before refusing: a client that is still sending would not see the reply.
_DRAINED = 4


class App:
    """One model with its queue and routes. `asgi` is the application for a server.

    When it starts, it compiles the forward passes of up to `warm_up_tokens` tokens; /health is 503 until then.
    """

    def __init__(
        self,
        model: Embedder,
        name: str,
        *,
        limits: wire.Limits,
        max_batch_tokens: int,
        max_wait: float,
        max_queued_tokens: int,
        prompt_name: str | None = None,
        index: SearchableIndex | None = None,
        warm_up_tokens: int = 0,
    ):
        self._model, self._name, self._limits, self._prompt_name = model, name, limits, prompt_name
        self.batcher = Batcher(
            model.encode_tokens,
            max_tokens=max_batch_tokens,
            max_wait=max_wait,
            max_queued_tokens=max_queued_tokens,
            encoded=lambda tokens, seconds: self.metrics.encoded(tokens, seconds),
        )
        self.metrics = Metrics(lambda: self.batcher.queued_tokens, lambda: self.batcher.queued_requests)
        search = [] if index is None else [Route("/", SearchPage(index, model, self.batcher).show)]
        self._shapes, self._compiled = model.shapes(warm_up_tokens), 0
        self.asgi = Starlette(
            routes=[
                *search,
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/contextualizedembeddings", self._contextualized, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={RequestError: _refuse, HTTPException: _refuse_http, Exception: _fail},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        worker, warming = asyncio.create_task(self.batcher.run()), asyncio.create_task(self._warm_up())
        yield
        warming.cancel()
        self.batcher.close()
        await worker

    async def _warm_up(self) -> None:
        """Compiles every shape. Requests are answered between two shapes."""
        if self._shapes:
            await self.batcher.between_batches(self._compile_replies)
        with Progress("warm up", len(self._shapes), unit="shape", enabled=bool(self._shapes)) as progress:
            for shape in self._shapes:
                try:
                    await self.batcher.between_batches(self._model.compile, shape)
                except Exception as error:  # such as a shape that is too large for the memory of the device
                    logging.error("cannot compile %d sequences of %d tokens: %s", *shape[:2], error)
                self._compiled += 1
                progress.update(self._compiled)

    def _compile_replies(self) -> None:
        """Compiles the quantization of replies, whose shapes are powers of two."""
        for step in range(self._limits.inputs.bit_length()):
            quantize(np.zeros((1 << step, self._model.dims), np.float32), "int8")

    async def _embeddings(self, request: HttpRequest) -> Response:
        return await self._answer(request, contextual=False)

    async def _contextualized(self, request: HttpRequest) -> Response:
        return await self._answer(request, contextual=True)

    async def _answer(self, http: HttpRequest, *, contextual: bool) -> Response:
        with self.metrics.request(http.url.path):
            body = await _read(http, self._limits.body_bytes)
            return await _while_connected(http, self._respond(body, contextual))

    async def _respond(self, body: bytes, contextual: bool) -> Response:
        request, ids, counts, tokens = await asyncio.to_thread(self._prepare, body, contextual)
        vectors = await self.batcher.submit(ids, counts, tokens)
        sizes = [len(chunk) for chunk in ids]
        answer = await asyncio.to_thread(wire.reply, request, vectors, sizes, model=self._name, tokens=tokens)
        return Response(answer, media_type="application/json")

    def _prepare(self, body: bytes, contextual: bool) -> tuple[wire.Request, Sequence[Tokens], np.ndarray, int]:
        """Returns the request, token ids of its chunks, number of chunks of each document, and total tokens."""
        request = wire.parse(body, contextual=contextual, model=self._name, dims=self._model.dims, limits=self._limits)
        try:
            prompt = self._model.prompt_text(request.prompt_name or self._prompt_name)
        except BadInput as error:
            raise RequestError(422, f"prompt_name: {error}", param="prompt_name", code="invalid_value") from None
        documents = with_document_prompt(request.documents, prompt)
        limit = min(self._model.config.max_length, self._limits.document_tokens)
        noun = "document" if contextual else "text"
        whose = "model" if limit == self._model.config.max_length else "server"

        def refuse(index: int, size: str) -> RequestError:
            message = f"{noun} {index} has {size} tokens, the {whose} takes {limit}; split it"
            return RequestError(400, message, param="input", code="context_length_exceeded")

        for index, document in enumerate(documents):
            if least := tokens_over_limit(self._model, document):
                raise refuse(index, f"at least {least}")
        ids = self._model.vocabulary.encode_batch([chunk for document in documents for chunk in document])
        counts = np.array([len(document) for document in request.documents], np.int64)
        lengths = np.array([len(chunk) for chunk in ids], np.int64)
        tokens = 0
        for index, part in enumerate(np.split(lengths, np.cumsum(counts)[:-1])):
            size = document_tokens(part)
            if size > limit:
                raise refuse(index, str(size))
            tokens += size
        if tokens > self._limits.tokens:
            message = f"{tokens} tokens in one request exceed the limit of {self._limits.tokens}; send fewer texts"
            raise RequestError(413, message, param="input", code="too_large")
        return request, ids, counts, tokens

    async def _models(self, _: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _one_model(self, request: HttpRequest) -> Response:
        if request.path_params["name"] != self._name:
            raise RequestError(404, f"model {request.path_params['name']!r} is not served here", code="model_not_found")
        return JSONResponse(self._description())

    async def _metrics(self, _: HttpRequest) -> Response:
        return Response(self.metrics.page(), media_type=KIND)

    async def _health(self, _: HttpRequest) -> Response:
        ready = self._compiled == len(self._shapes)
        state = {"status": "ok"} if ready else {"status": "warming up", "compiled": self._compiled}
        answer = {**state, "model": self._name, "queued_tokens": self.batcher.queued_tokens}
        return JSONResponse(answer, 200 if ready else 503)

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "pplx_jax",
            "kind": self._model.kind,
            "dimensions": self._model.dims,
            "max_length": self._model.config.max_length,
            "fingerprint": self._model.fingerprint,
            "prompts": dict(self._model.prompts),
        }


async def _read(http: HttpRequest, limit: int) -> bytes:
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > _DRAINED * limit:
                break
    except ClientDisconnect:
        raise _left() from None
    if size > limit:
        raise RequestError(413, f"the body has more than {limit} bytes; send fewer texts", code="too_large")
    return b"".join(parts)


async def _while_connected(http: HttpRequest, work: Coroutine[Any, Any, Response]) -> Response:
    """Returns the result of `work`. Cancels it if the client disconnects, so that nobody encodes for it."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _left()
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _left() -> RequestError:
    return RequestError(499, "the client disconnected before its reply")  # nginx's status; the client never sees it


async def _refuse(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


async def _refuse_http(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(RequestError(error.status_code, message).body(), error.status_code, error.headers)


async def _fail(_: HttpRequest, error: Exception) -> Response:
    logging.error("a request failed: %s: %s", type(error).__name__, error)
    return JSONResponse(RequestError(500, "the request failed; see the server's log").body(), 500)
