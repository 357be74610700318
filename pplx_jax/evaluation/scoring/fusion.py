"""Relevance labels from the rankings of several systems, by reciprocal rank fusion (Cormack et al., SIGIR 2009)."""

from collections.abc import Callable, Mapping, Sequence

from pplx_jax.core.errors import BadInput

# Query id -> document id -> score.
Run = Mapping[str, Mapping[str, float]]
DAMPING = 60.0  # k of the paper


def reciprocal_rank_fusion(runs: Sequence[Run], damping: float = DAMPING) -> dict[str, dict[str, float]]:
    """The sum over runs of 1 / (damping + rank), rank from 1; a run that did not find a document adds nothing.

    Args:
        runs: of different systems; a run is ranked by score, equals by id descending, as trec_eval does.
        damping: k; the larger, the less the first ranks stand out.

    Returns:
        query id -> document id -> fused score, over all queries and documents of any run.
    """
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, found in run.items():
            scores = fused.setdefault(query, {})
            for rank, document in enumerate(_ranked(found), start=1):
                scores[document] = scores.get(document, 0.0) + 1.0 / (damping + rank)
    return fused


def fused_labels(
    runs: Sequence[Run],
    relevant: int,
    damping: float = DAMPING,
    *,
    counts: Callable[[str, str], bool] = lambda query, document: True,
) -> dict[str, dict[str, int]]:
    """Calls the `relevant` best fused documents of each query relevant, grade 1.

    Args:
        runs, damping: see `reciprocal_rank_fusion`.
        relevant: documents of each query, where that many were found.
        counts: whether a document may be relevant to a query.

    Raises:
        BadInput: fewer than two runs: the labels of one system are its own opinion.
    """
    if len(runs) < 2:
        raise BadInput(f"labels are fused from the runs of several systems, not of {len(runs)}; give at least two")
    fused = reciprocal_rank_fusion(runs, damping)
    ranked = {
        query: [document for document in _ranked(scores) if counts(query, document)] for query, scores in fused.items()
    }
    return {query: dict.fromkeys(documents[:relevant], 1) for query, documents in ranked.items()}


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)
