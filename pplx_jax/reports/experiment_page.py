"""The page of an experiment: the arms, the predictions, and each outcome with its differences and intervals."""

from collections.abc import Mapping
from typing import Any

from pplx_jax.reports import charts
from pplx_jax.reports.html import Row, render, score, signed


def render_experiment(compared: Mapping[str, Any], predictions: str) -> str:
    """Returns the HTML document.

    Args:
      compared: the content of the experiment's results.json.
      predictions: text that was written before the runs; empty for none.
    """
    seeds = [str(seed) for seed in compared["seeds"]]
    values = {
        "subtitle": f"{len(compared['about'])} arms · seeds {', '.join(seeds)} · compared with {compared['baseline']}",
        "about": [Row([arm, text]) for arm, text in compared["about"].items()],
        "predictions": predictions.strip(),
        "outcomes": [_outcome(outcome, seeds, compared["baseline"]) for outcome in compared["outcomes"]],
        "resamples": compared["resamples"],
    }
    return render("experiment.html", compared["set"], values)


def _outcome(outcome: Mapping[str, Any], seeds: list[str], baseline: str) -> dict[str, Any]:
    rows = [
        Row(
            [
                row["arm"],
                score(row["mean"]),
                signed(row["difference"]) if "difference" in row else "",
                f"{signed(row['low'])} to {signed(row['high'])}" if "difference" in row else "",
                *(score(row["by_seed"].get(seed)) for seed in seeds),
            ],
            baseline=row["arm"] == baseline,
        )
        for row in outcome["arms"]
    ]
    bars = [charts.Bar(row["arm"][: charts.LONGEST_LABEL], row["mean"], "int8") for row in outcome["arms"]]
    return {
        "name": outcome["outcome"],
        "note": f"{outcome['metric']} of {outcome['queries']} queries",
        "head": ["arm", outcome["metric"], "difference", "95% interval", *(f"seed {seed}" for seed in seeds)],
        "rows": rows,
        "chart": charts.bars(bars),
    }
