"""Scoring on several retrieval sets at once: each set's figures, and their mean in the place of one set's."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.data.io.beir import RetrievalSet, read_beir, set_folders
from pplx_jax.evaluation.scoring.caching_encoder import Remembering
from pplx_jax.evaluation.suites.beir_folder import evaluate
from pplx_jax.inference.encoder import Encoder

SETS = "sets"


def read_sets(folder: pathlib.Path) -> dict[str, RetrievalSet] | RetrievalSet:
    """A BEIR folder as the set it is, a folder of BEIR folders as sets by name.

    Raises:
        BadInput: a set cannot be read.
    """
    folder = pathlib.Path(folder)
    inner = set_folders(folder)
    return read_beir(folder) if inner == [folder] else {path.name: read_beir(path) for path in inner}


def score_sets(
    data: Mapping[str, RetrievalSet] | RetrievalSet, score: Callable[[RetrievalSet], Mapping[str, Any]]
) -> dict[str, Any]:
    """Of one set its scores; of several the mean of every figure, and under "sets" each set's own.

    Args:
        data: what `read_sets` gives.
        score: nested figures of a set; the same figures for each.
    """
    if isinstance(data, RetrievalSet):
        return dict(score(data))
    scores = {name: dict(score(one)) for name, one in data.items()}
    return {**_mean(list(scores.values())), SETS: scores}


def score_model(
    model: Encoder, data: Mapping[str, RetrievalSet] | RetrievalSet, *, contextual: bool = False, **size: Any
) -> dict[str, Any]:
    """Float, INT8 and binary of passages alone, cut at the model's limit; of a context model also in their documents.

    Args:
        model: the encoder.
        data: what `read_sets` gives.
        contextual: add "with_context" and "without_context"; a set whose passages are documents of their own is the
            same in both.
        **size: `chunks_per_document`, `tokens_per_document` of `pooled_vectors`.
    """
    remembering = Remembering(model)

    def score(one: RetrievalSet) -> dict[str, Any]:
        alone = evaluate(remembering, one, truncate=True)
        if not contextual:
            return alone
        within = evaluate(remembering, one, context=True, truncate=True, **size) if one.has_context else alone
        return {**alone, "with_context": within, "without_context": alone}

    return score_sets(data, score)


def _mean(scores: Sequence[Any]) -> Any:
    if isinstance(scores[0], Mapping):
        return {name: _mean([one[name] for one in scores]) for name in scores[0]}
    return float(np.mean(scores))
