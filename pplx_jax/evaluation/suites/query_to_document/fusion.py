"""Relevance labels from several systems' rankings by reciprocal rank fusion (Cormack et al., SIGIR 2009)."""

from collections.abc import Callable, Mapping, Sequence

from pplx_jax.core.errors import BadInput

# Query id -> document id -> score.
Run = Mapping[str, Mapping[str, float]]
DAMPING = 60.0  # k of the paper; a larger k gives less weight to the first ranks


def reciprocal_rank_fusion(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Sums 1 / (DAMPING + rank) over runs, ranks from 1. A run without the document adds nothing.

    Args:
        runs: of different systems. A run is ranked by score, ties by id descending, as in trec_eval.

    Returns:
        query id -> document id -> fused score, over all queries and documents of any run.
    """
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, found in run.items():
            scores = fused.setdefault(query, {})
            for rank, document in enumerate(_ranked(found), start=1):
                scores[document] = scores.get(document, 0.0) + 1.0 / (DAMPING + rank)
    return fused


def fused_labels(
    runs: Sequence[Run],
    relevant: int,
    *,
    counts: Callable[[str, str], bool] = lambda query, document: True,
) -> dict[str, dict[str, int]]:
    """Labels the `relevant` best fused documents of each query with grade 1.

    Args:
        runs: see `reciprocal_rank_fusion`.
        relevant: maximum number of relevant documents per query.
        counts: returns whether a document may be relevant to a query.

    Raises:
        BadInput: there are fewer than two runs. One system cannot judge itself.
    """
    if len(runs) < 2:
        raise BadInput(f"fused labels need the runs of at least two systems, got {len(runs)}; add runs")
    fused = reciprocal_rank_fusion(runs)
    ranked = {
        query: [document for document in _ranked(scores) if counts(query, document)] for query, scores in fused.items()
    }
    return {query: dict.fromkeys(documents[:relevant], 1) for query, documents in ranked.items()}


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)
