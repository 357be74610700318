"""How full the packed sequences of a stage are."""

import dataclasses
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.batch_spec import BatchSpec
from pplx_jax.data.batches.examples import Examples
from pplx_jax.data.quality.report_text import shortened
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.tokens.open_tables import Tables
from pplx_jax.data.tokens.vocabulary import Vocabulary

_BATCHES = 20


def measure_fill(
    spec: BatchSpec, data: Mixture | Curriculum | None, tables: Tables, vocabulary: Vocabulary, segments: int
) -> dict[str, Any]:
    """Packs batches as training does. The batch size is halved until there are enough examples for a batch.

    Args:
        spec: what a batch of the stage contains.
        data: what the stage reads; all tables if None.
        tables: the token tables of its kind.
        vocabulary: decodes the sample.
        segments: number of segments to show of one sequence.

    Returns:
        `batch_size`, `fill` (share of the positions that hold a token), `tokens`, `cut_tokens`, `cells` (positions),
        and `sample`, one sequence as text.
    """
    tables = {name: found for name, found in tables.items() if sum(table.count for table in found)}
    count = sum(table.count for found in tables.values() for table in found)
    batch_size, stream = spec.batch_size, None
    while stream is None and batch_size:
        try:
            spec = dataclasses.replace(spec, batch_size=batch_size)
            stream = Examples(tables, data, batch_size, seed=0) if count >= batch_size else None
        except BadInput:
            pass
        if stream is None:
            batch_size //= 2
    if stream is None:
        return {"batch_size": 0, "fill": 0.0, "tokens": 0, "cut_tokens": 0, "cells": 0, "sample": ""}
    sequences = stream.sequences(spec, multiple_of=1)
    cells = tokens = cut = 0
    sample = ""
    for batch in range(min(_BATCHES, max(count // batch_size, 1))):
        selection = stream.select(batch * batch_size + np.arange(batch_size))
        packed = stream.pack(spec, selection, sequences[selection.group])
        tokens, cut = tokens + packed.metrics["tokens"], cut + packed.metrics["cut_tokens"]
        cells += packed.arrays["tokens"].size
        if not sample:
            sample = _sequence_text(packed.arrays["tokens"][0], packed.arrays["segment_ids"][0], vocabulary, segments)
    return {
        "batch_size": batch_size,
        "fill": tokens / cells,
        "tokens": int(tokens),
        "cut_tokens": int(cut),
        "cells": cells,
        "sample": sample,
    }


def _sequence_text(tokens: np.ndarray, segment_ids: np.ndarray, vocabulary: Vocabulary, segments: int) -> str:
    lines = []
    for segment in np.unique(segment_ids)[: segments + 1]:
        own = tokens[segment_ids == segment].tolist()
        text = "padding" if not segment else shortened(vocabulary.decode(own))
        lines.append(f"segment {segment}, {len(own)} tokens: {text}")
    return "\n".join(lines)
