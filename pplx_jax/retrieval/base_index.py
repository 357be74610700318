"""What every index has: the description of its vectors and model, and the encoding of queries."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import joined, resolved
from pplx_jax.inference.encoder import Encoder, query_encoder
from pplx_jax.kernels.quantization import BitOrder, Quantization, quantize, zero_rows
from pplx_jax.retrieval.search_options import SearchOptions


class BaseIndex:
    """An opened index.

    Attributes:
        path: its folder.
        model: the model folder that encodes queries.
        model_fingerprint: of the model. Queries of another model are refused.
        dims, quantization, bit_order, count: of the vectors.
        prompts: arguments of `load_encoder`, if the model was loaded with other prompts than its own.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any]):
        self.path = path
        self.model = joined(resolved(path), description["model"])
        self.model_fingerprint: str = description["model_fingerprint"]
        self.dims: int = description["dims"]
        self.quantization: Quantization = description["quantization"]
        self.bit_order: BitOrder = description["bit_order"]
        self.prompts: dict[str, Any] = description.get("prompts", {})
        self.count: int = description["count"]

    def encode_queries(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        """Returns the vectors of queries, quantized like the index [Q, width]. Raises BadInput like `pool_queries`."""
        return quantize(self.pool_queries(texts, encoder), self.quantization, self.bit_order)

    def encode_query(self, text: str, encoder: Encoder) -> np.ndarray:
        """Returns the vector [width] of one query; see `encode_queries`."""
        return self.encode_queries([text], encoder)[0]

    def pool_queries(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        """Returns the pooled vectors of queries, float32 [Q, dims].

        Raises:
            BadInput: a text is empty or has no tokens, or the model is not the model of the index.
        """
        if not all(text.strip() for text in texts):
            raise BadInput("the query is empty; give some text to search for")
        if encoder.fingerprint != self.model_fingerprint:
            raise BadInput(
                f"the index {self.path} was made by model {self.model_fingerprint}, {self.model} is now "
                f"{encoder.fingerprint}; embed and index again"
            )
        pooled = query_encoder(encoder)(texts, quantization="none", dims=self.dims)
        if len(empty := np.flatnonzero(zero_rows(pooled))):
            raise BadInput(f"the query {texts[empty[0]]!r} has no tokens in this model; give some text to search for")
        return pooled

    def require_engine(self, options: SearchOptions, *own: str) -> None:
        """Raises BadInput if the options ask for an engine that this index does not have."""
        if options.engine not in (None, *own):
            raise BadInput(f"the index {self.path} is searched by {', '.join(own)}, not by {options.engine}")
