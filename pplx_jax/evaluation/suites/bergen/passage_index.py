"""Searches an index of passages for many queries: the best k passages of each with their text."""

import pathlib
from collections.abc import Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.evaluation.scoring.system import System, pool, refuse_context
from pplx_jax.inference.encoder import query_encoder
from pplx_jax.retrieval.open_index import open_index
from pplx_jax.retrieval.searchable_index import SearchableIndex


def open_passage_index(folder: pathlib.Path, system: System) -> "PassageIndex":
    """Opens an index that `pplx-jax index` wrote, of any engine.

    Raises:
        BadInput: there is no index, it has the vectors of another model or of other settings, or the system is BM25.
    """
    if system.encoder is None:
        raise BadInput(f"{folder} is an index of vectors, but bm25 has none; give a model")
    refuse_context(system.settings)
    index = open_index(folder)
    if index.model_fingerprint != system.encoder.fingerprint:
        raise BadInput(
            f"{folder} was made by model {index.model_fingerprint}, {system.name} is {system.encoder.fingerprint}; "
            "embed and index again"
        )
    wanted, dims = system.settings.quantization, system.settings.dims or system.encoder.dims
    if (index.quantization, index.dims) != (wanted, dims):
        raise BadInput(
            f"{folder} holds {index.quantization} vectors of {index.dims} dimensions, "
            f"not {wanted} of {dims}; give --quantization {index.quantization}, or embed and index again"
        )
    return PassageIndex(index, system)


class PassageIndex:
    """An opened index; see `open_passage_index`.

    Attributes:
        count: number of passages.
    """

    def __init__(self, index: SearchableIndex, system: System):
        self.count = index.count
        self._system = system
        self._index = index

    def search(self, ids: Sequence[str], texts: Sequence[str], k: int, label: str) -> list[list[dict[str, Any]]]:
        """Returns the hits {"id", "score", "text", ...} of each query, best first.

        Args:
            ids, texts: of the queries.
            k: number of hits.
            label: name of the work in the progress line.
        """
        encoder = self._system.encoder
        assert encoder is not None
        pooled = pool(query_encoder(encoder), ids, list(texts), self._system.settings)
        found = []
        with Progress(label, len(texts), unit="query") as progress:
            for number in range(len(pooled)):
                found += self._index.search_pooled(pooled[number : number + 1], k)
                progress.update(number + 1)
        return found
