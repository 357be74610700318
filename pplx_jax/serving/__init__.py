"""Serves a model over HTTP with an API like OpenAI's.

`server` runs it, `app` has the routes, `wire` parses requests and writes replies, `batching` batches requests.

    POST /v1/embeddings               input: a text or a list of texts
    POST /v1/contextualizedembeddings input: a list of documents, each a list of chunks (late chunking)
    GET  /v1/models, /health, /metrics

Both POST routes take `model`, `dimensions` (number of leading dimensions), `encoding_format` and `bit_order`. A query
for the context model is a text in the first route, or a document of one chunk in the second. Both give the same vector.

| encoding_format | format of an embedding |
|---|---|
| float (default) | the INT8 integers, -127 to 127, as JSON numbers |
| base64 | the same numbers as little-endian float32 (the default of the `openai` package) |
| base64_int8 | the same numbers, one signed byte each |
| base64_binary | one bit per dimension; `bit_order` "little" (default, as in the hosted API) or "big" |

Embeddings are not normalized. Compare them by cosine, bits by Hamming distance.

Errors have OpenAI's format. 400: not JSON, or a text over the model's limit (texts are never cut). 404: another model.
413: the request exceeds a limit. 422: a field is invalid. 429: the queue is full. 503: too many connections, or the
server is stopping; try again.
"""
