"""Encodes a retrieval set: each passage alone, or in the context of its document (late chunking)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.evaluation.scoring.system import TOO_LONG
from pplx_jax.inference.encoder import Encoder, document_encoder, document_tokens, query_encoder
from pplx_jax.inference.overflow import Overflow, too_long_by_name

CONTEXT_CHUNKS = 16  # chunks per document in contextual training


def embed_set(
    model: Encoder,
    data: RetrievalSet,
    *,
    context: bool = False,
    dims: int | None = None,
    overflow: Overflow = "error",
    chunks_per_document: int = CONTEXT_CHUNKS,
    tokens_per_document: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes queries and passages, without quantization.

    Args:
        model: the encoder.
        data: the set.
        context: whether each passage is encoded together with its neighbours in the same parent, in chunk order. A
            query is a document of one chunk in both cases.
        dims: number of leading dimensions; None for all.
        overflow: what happens to texts over the model's limit, see `Embedder`.
        chunks_per_document, tokens_per_document: longer parents are split into consecutive documents. The token limit
            is never above the model's, which is the default.

    Returns:
        queries [Q, dims] and passages [N, dims], float32, in the order of `data`.

    Raises:
        BadInput: a text is over the model's limit with overflow="error"; the message names its id.
    """
    options: dict[str, Any] = {"quantization": "none", "dims": dims, "overflow": overflow}
    with too_long_by_name(data.query_ids, TOO_LONG):
        queries = query_encoder(model)(data.queries, **options)
    if not context:
        with too_long_by_name(data.document_ids, TOO_LONG):
            return queries, document_encoder(model)(data.documents, **options)
    limit = min(tokens_per_document or model.config.max_length, model.config.max_length)
    groups = list(context_groups(data, model.count_tokens(data.documents), chunks_per_document, limit))
    chunks = [[data.documents[passage] for passage in group] for group in groups]
    with too_long_by_name(
        [data.document_ids[group[0]] for group in groups], TOO_LONG
    ):  # a group over the limit has one passage
        encoded = np.concatenate(model.encode_documents(chunks, **options))
    documents = np.empty_like(encoded)
    documents[np.concatenate(groups)] = encoded
    return queries, documents


def context_groups(data: RetrievalSet, tokens: np.ndarray, most_chunks: int, most_tokens: int) -> Iterator[list[int]]:
    """Splits the passages into documents within a model's limits.

    Args:
        data: the set.
        tokens: [N] tokens of each passage.
        most_chunks, most_tokens: limits of a document. A passage over `most_tokens` is a document by itself.

    Yields:
        Indices of passages of one parent, in chunk order. Each passage is in exactly one group.
    """
    members: dict[str, list[int]] = {}
    for passage, parent in enumerate(data.parents):
        members.setdefault(parent, []).append(passage)
    for passages in members.values():
        group: list[int] = []
        for passage in sorted(passages, key=lambda row: (data.chunks[row], row)):
            longer = [*group, passage]
            if group and (len(longer) > most_chunks or document_tokens(tokens[longer]) > most_tokens):
                yield group
                longer = [passage]
            group = longer
        yield group
