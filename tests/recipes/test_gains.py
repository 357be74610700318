"""What each stage adds: which models are compared, on which queries, and what is said about it."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.merge import Merge
from pplx_jax.recipes.gains import compared_models, gains
from pplx_jax.recipes.results import format_gains
from pplx_jax.training.settings import Training

BASE = np.random.default_rng(0).uniform(size=400)
NOISE = np.random.default_rng(1).normal(scale=0.1, size=400)
NOISE -= NOISE.mean()


def by(row: dict) -> tuple[str, str, str]:
    return row["of"], row["over"], row["set"]


def test_each_stage_is_compared_with_the_one_it_starts_from():
    stages = [Training(tiny.STAGES[name], tiny.OPTIMIZER, steps=1) for name in ("diffusion", "pair", "triplet")]
    merge = Merge(stages=("pair", "triplet"))
    scored = ("bm25", "random", "diffusion", "pair", "triplet", "merged")
    assert list(compared_models(stages, merge, scored)) == [
        ("diffusion", "random"),
        ("pair", "diffusion"),
        ("triplet", "pair"),
        ("merged", "pair"),
        ("merged", "triplet"),
        ("merged", "bm25"),
    ]
    assert list(compared_models(stages[1:], merge, ("initial", "random", "pair"))) == [("pair", "initial")]
    other = dataclasses.replace(stages[2], starts_from="diffusion")
    assert ("triplet", "diffusion") in compared_models([*stages[:2], other], merge, scored)


def test_gains_by_query_with_what_context_brings():
    pair = {"evaluation": BASE, "probes/context": BASE}
    contextual = {
        "evaluation": BASE - 0.1 + NOISE,
        "evaluation/with_context": BASE - 0.1 + 2 * NOISE,
        "probes/context": BASE + 0.001 * NOISE,
        "probes/context/with_context": BASE + 0.3 + NOISE,
    }
    rows = gains({"pair": pair, "contextual": contextual}, [("pair", "diffusion"), ("contextual", "pair")])
    assert [by(row) for row in rows] == [
        ("contextual", "pair", "evaluation"),
        ("contextual", "pair", "context"),
        ("contextual, in context", "contextual, alone", "evaluation"),
        ("contextual, in context", "contextual, alone", "context"),
    ]
    assert [row["ndcg@10"] for row in rows] == pytest.approx([-0.1, 0.0, 0.0, 0.3], abs=1e-9)
    for row in rows:
        assert row["low"] < row["ndcg@10"] < row["high"]
        # By query: of two independent means, whose values spread by 0.29, the interval would be 0.08 wide.
        assert row["high"] - row["low"] < 0.025
    lines = format_gains({"gains": rows}).splitlines()
    assert "contextual over pair" in lines[1] and "evaluation  costs 0.100 [0.0" in lines[1]
    assert "no difference that can be seen: " in lines[2]
    assert "context     adds 0.300 [0.29" in lines[4]
    assert format_gains({"gains": []}) == format_gains({}) == ""


def test_several_sets_count_the_same_whatever_their_size():
    first = {"large": np.ones(900), "small": np.zeros(10)}
    (row,) = gains({"a": first, "b": {name: np.zeros(len(of)) for name, of in first.items()}}, [("a", "b")])
    assert (row["set"], row["ndcg@10"], row["low"], row["high"]) == ("evaluation", 0.5, 0.5, 0.5)
