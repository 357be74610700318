"""What each stage of a run adds to the one that it starts from: differences of nDCG@10 by query, with intervals."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.checkpoints.merge import Merge
from pplx_jax.checkpoints.merge_folders import MERGED
from pplx_jax.evaluation.core.significance import paired_interval
from pplx_jax.evaluation.scoring.retrieval_sets import EVALUATION, MAIN_METRIC, PROBES, WITH_CONTEXT
from pplx_jax.recipes.weighted_start import NAME as INITIAL
from pplx_jax.training.settings import Training

_Values = Mapping[str, Sequence[float]]  # set -> nDCG@10 of each query, as in `score_sets`
_CONTEXT, _PROBE = f"/{WITH_CONTEXT}", f"{PROBES}/"


def compared_models(stages: Sequence[Training], merge: Merge, scored: Container[str]) -> Iterator[tuple[str, str]]:
    """Yields (model, the one to compare it with) for the scored models of a run.

    A stage is compared with the model that it starts from, and the merge with its two stages and with BM25.
    """
    start = INITIAL if INITIAL in scored else "random"
    for training in stages:
        if training.stage.name in scored:
            earlier = training.earlier_stage
            yield training.stage.name, earlier if earlier and earlier in scored else start
    if MERGED in scored:
        yield from ((MERGED, other) for other in (*merge.stages, "bm25"))


def gains(per_query: Mapping[str, _Values], origins: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Compares models on the same queries, and a context model with context and without.

    Args:
        per_query: model -> values. A model without any, scored by an earlier version, is left out.
        origins: (model, the one to compare it with).

    Returns:
        Rows for results.json: {"of", "over": names of models, "set": "evaluation" for the mean of the evaluation sets
        or the name of a probe, "ndcg@10": difference, "low", "high": its 95% interval}.
    """
    rows: list[dict[str, Any]] = []
    for of, over in origins:
        alone, in_context = _ways(per_query.get(of, {}))
        rows += _compared(of, over, alone, _ways(per_query.get(over, {}))[0])
        rows += _compared(f"{of}, in context", f"{of}, alone", in_context, alone)
    return rows


def _ways(values: _Values) -> tuple[_Values, _Values]:
    """Splits values into those of passages alone and those of passages in context, by set."""
    alone = {name: found for name, found in values.items() if not name.endswith(_CONTEXT)}
    return alone, {name.removesuffix(_CONTEXT): found for name, found in values.items() if name.endswith(_CONTEXT)}


def _compared(of: str, over: str, first: _Values, second: _Values) -> Iterator[dict[str, Any]]:
    """Yields a row for the mean of the evaluation sets, and one for each probe."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, values in first.items():
        if name in second:
            group = name.removeprefix(_PROBE) if name.startswith(_PROBE) else EVALUATION
            pairs.setdefault(group, []).append((np.asarray(values), np.asarray(second[name])))
    for group, of_group in pairs.items():
        difference, low, high = paired_interval(of_group)
        yield {"of": of, "over": over, "set": group, MAIN_METRIC: difference, "low": low, "high": high}
