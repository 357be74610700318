"""A model behind HTTP in OpenAI's manner: `server` runs it, `app` routes, `wire` reads and writes, `batching` batches.

    POST /v1/embeddings               input: a text or a list of texts
    POST /v1/contextualizedembeddings input: a list of documents, each a list of chunks (late chunking)
    GET  /v1/models, /health

Both take `model`, `dimensions` (a prefix), `encoding_format` and `bit_order`. A query of the context model is a
text at the first, or a document of one chunk at the second: the same vector.

| encoding_format | an embedding is |
|---|---|
| float (default) | the INT8 integers, -127 to 127, as JSON numbers |
| base64 | the same numbers as little-endian float32 (what the `openai` package asks for on its own) |
| base64_int8 | the same numbers, a signed byte each |
| base64_binary | a bit a dimension; `bit_order` "little" (default, as the hosted API) or "big" |

They are not normalised: compare by cosine, bits by Hamming distance.

Errors have OpenAI's shape. 400: no JSON, or a text over the model's length (never cut silently). 404: another model.
413: a request over a limit. 422: a field that is wrong. 503: too much is waiting, or the server is stopping; try again.
"""
