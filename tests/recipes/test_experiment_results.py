"""The comparison of arms: pairs by query id, common seeds, intervals that know both queries and seeds."""

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.core.results import Outcome, Results, Subject
from pplx_jax.evaluation.core.significance import seeded_interval
from pplx_jax.evaluation.scoring.system import Settings
from pplx_jax.recipes.experiment_results import compare_arms, format_comparison
from pplx_jax.reports.experiment_page import render_experiment

QUERIES = [f"q{number}" for number in range(40)]


def scores(folder, values, queries=QUERIES):
    part = Part("test", "default", {"ndcg@10": float(np.mean(values))}, len(values), 9, queries, {"ndcg@10": values})
    results = Results(Subject("experiment", "model", str(folder)), folder)
    results.add(Outcome("plain", "ndcg@10", "1", "tanh", Settings("tanh"), [part], 1.0))
    return folder


@pytest.fixture
def arms(tmp_path):
    """A baseline with seeds 0 and 1, and an arm that is better by .1 on average, its queries in another order."""
    generator = np.random.default_rng(0)
    base = {seed: generator.uniform(0, 0.5, 40) for seed in (0, 1)}
    better = {seed: base[seed] + 0.1 + generator.normal(0, 0.02, 40) for seed in (0, 1)}
    found = {
        "base": {seed: scores(tmp_path / f"base{seed}", values) for seed, values in base.items()},
        "better": {
            seed: scores(tmp_path / f"better{seed}", values[::-1], QUERIES[::-1]) for seed, values in better.items()
        },
    }
    return found, base, better


def test_values_are_paired_by_query(arms):
    found, base, better = arms
    compared = compare_arms(found)
    (outcome,) = compared["outcomes"]
    assert (outcome["outcome"], outcome["metric"], outcome["queries"]) == ("plain, float", "ndcg@10", 40)
    first, second = outcome["arms"]
    assert first == {"arm": "base", "mean": pytest.approx(np.mean([*base.values()])), "by_seed": first["by_seed"]}
    assert second["difference"] == pytest.approx(np.mean([better[seed] - base[seed] for seed in base]))
    # The queries differ by .5 and the pairs by .02: a comparison that is not paired would be ten times as wide.
    assert 0.08 < second["low"] < second["difference"] < second["high"] < 0.12
    table = format_comparison({**compared, "seeds": [0, 1]})
    assert f"{second['difference']:+.4f}" in table and "plain, float, 40 queries" in table
    page = render_experiment({**compared, "seeds": [0, 1], "set": "s", "about": {"base": "<b>", "better": ""}}, "")
    assert "&lt;b&gt;" in page and "Predictions" not in page


def test_only_common_seeds_are_compared(arms):
    found, base, better = arms
    del found["better"][0]
    second = compare_arms(found)["outcomes"][0]["arms"][1]
    assert second["by_seed"].keys() == {"1"}
    assert second["difference"] == pytest.approx(np.mean(better[1] - base[1]))
    del found["base"][1]
    assert "difference" not in compare_arms(found)["outcomes"][0]["arms"][1]
    found["base"] = {}
    assert [row["arm"] for row in compare_arms(found)["outcomes"][0]["arms"]] == ["better"]


def test_other_queries_are_refused(arms, tmp_path):
    found, _, better = arms
    found["better"][1] = scores(tmp_path / "other", better[1], [f"other{name}" for name in QUERIES])
    with pytest.raises(BadInput, match="different queries"):
        compare_arms(found)


def test_the_interval_covers_the_truth_and_seeds_make_it_wider():
    generator = np.random.default_rng(1)
    covered, trials = 0, 60
    for _ in range(trials):
        # One effect per query for all seeds: the seeds of a query are not independent.
        differences = 0.05 + generator.normal(0, 0.3, 200) + generator.normal(0, 0.01, (2, 200))
        low, high = seeded_interval(differences, resamples=300)
        covered += low <= 0.05 <= high
    assert covered >= 0.85 * trials
    # Control: seeds as further independent queries, which would be too narrow by the root of 2.
    alone = seeded_interval(differences.reshape(1, -1))
    assert (high - low) > 1.25 * (alone[1] - alone[0])
    shifted = differences + np.array([[0.2], [-0.2]])
    wide = seeded_interval(shifted)
    assert wide[1] - wide[0] > 2 * (high - low)
    assert seeded_interval(differences) == seeded_interval(differences)
