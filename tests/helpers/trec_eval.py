"""Metrics of a run by trec_eval, to compare ours with."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytrec_eval

_WHOLE = {"mrr": "recip_rank", "map": "map", "ndcg": "ndcg", "recall": "set_recall"}
_CUT = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit": "success"}


def query_metrics(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns values by name, in the order of `qrels`; 0 for a query without hits, which trec_eval leaves out."""
    measures = {name: _measure(name) for name in names}
    found = pytrec_eval.RelevanceEvaluator(qrels, set(measures.values())).evaluate(run)
    values = {name: np.array([found.get(q, {}).get(measure, 0.0) for q in qrels]) for name, measure in measures.items()}
    for name in values:
        if name.startswith("mrr@"):  # trec_eval has no cutoff for it
            values[name] = np.where(values[name] >= 1 / int(name[4:]), values[name], 0.0)
    return values


def run_metrics(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], names: Iterable[str]
) -> dict[str, float]:
    """Returns the means over all judged queries."""
    return {name: float(values.mean()) for name, values in query_metrics(run, qrels, names).items()}


def _measure(name: str) -> str:
    kind, _, cutoff = name.partition("@")
    return f"{_CUT[kind]}_{cutoff}" if cutoff and kind in _CUT else _WHOLE[kind]
