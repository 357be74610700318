"""A page to search an index by hand: a box for the query, the documents that are found, and how long it took.

The page has no script and loads nothing; a search is a GET request with the fields of its form.
"""

import asyncio
import concurrent.futures
import time
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import QUERY, with_prompt
from pplx_jax.inference.embedder import Embedder
from pplx_jax.kernels.quantization import zero_rows
from pplx_jax.reports.html import render
from pplx_jax.retrieval.embeddings.folder import document_of
from pplx_jax.retrieval.searchable_index import Hit, SearchableIndex
from pplx_jax.serving.batching import Batcher
from pplx_jax.serving.errors import RequestError

HITS, MOST_HITS = 10, 100
_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"}


class SearchPage:
    """The page of one index. Queries wait in the same queue as other requests; one search runs at a time.

    Args:
        index: the opened index.
        model: encodes queries; it must be the model of the index.
        batcher: of the server.

    Raises:
        BadInput: the index was made by another model.
    """

    def __init__(self, index: SearchableIndex, model: Embedder, batcher: Batcher):
        if index.model_fingerprint != model.fingerprint:
            raise BadInput(
                f"the index {index.path} was made by model {index.model_fingerprint}, this one is {model.fingerprint}; "
                f"serve {index.model}"
            )
        self._index, self._model, self._batcher = index, model, batcher
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="search")

    async def show(self, request: Request) -> HTMLResponse:
        """Answers a request for the page."""
        query, status, found = request.query_params.get("q", "").strip(), 200, {}
        try:
            k = int(request.query_params.get("k", HITS))
            if not 1 <= k <= MOST_HITS:
                raise ValueError
        except ValueError:
            k, status, found = HITS, 422, {"problem": f"k is not a number from 1 to {MOST_HITS}"}
        if query and not found:
            try:
                found = await self._search(query, k)
            except RequestError as error:
                status, found = error.status, {"problem": str(error)}
            except BadInput as error:
                status, found = 500, {"problem": str(error)}
        subtitle = f"{self._index.count:,} vectors of {self._index.dims} dimensions, {self._index.quantization}"
        values = {"subtitle": subtitle, "query": query, "k": k, "most": MOST_HITS, "problem": "", "seconds": None}
        return HTMLResponse(render("search.html", self._index.path.name, values | found), status, _POLICY)

    async def _search(self, query: str, k: int) -> dict[str, Any]:
        started = time.monotonic()
        ids = self._model.vocabulary.encode_batch(with_prompt([query], self._model.prompt_text(QUERY)))
        tokens, limit = len(ids[0]), self._model.config.max_length
        if tokens > limit:
            raise RequestError(400, f"the query has {tokens} tokens, the model takes {limit}; shorten it")
        pooled = (await self._batcher.submit(ids, np.ones(1, np.int64), tokens))[:, : self._index.dims]
        if zero_rows(pooled).any():
            raise RequestError(422, "the query has no tokens in this model")
        encoded = time.monotonic()
        loop = asyncio.get_running_loop()
        hits = (await loop.run_in_executor(self._thread, self._index.search_pooled, pooled, k))[0]
        seconds = {"encode": encoded - started, "search": time.monotonic() - encoded}
        return {"documents": [_document(hit) for hit in hits], "seconds": seconds}


def _document(hit: Hit) -> dict[str, Any]:
    """Returns what the page shows of a hit: its document, and the chunks in the order of the text, the best marked."""
    chunks = sorted(hit.get("chunks", [hit]), key=lambda chunk: chunk.get("chunk", 0))
    place = ":".join(str(hit[name]) for name in ("path", "line") if hit[name] is not None)
    return {
        "name": document_of(hit),
        "place": place,
        "score": hit["score"],
        "chunks": [
            {
                "text": chunk["text"],
                "score": chunk["score"],
                "best": chunk["id"] == hit["id"],
                "number": chunk.get("chunk"),
            }
            for chunk in chunks
        ],
    }
