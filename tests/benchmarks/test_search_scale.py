"""The benchmark's phases over a few vectors: what it draws, and what it calls recall."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from pplx_jax.retrieval.search_options import SearchOptions

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "search_scale.py"
spec = importlib.util.spec_from_file_location("search_scale", PATH)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)


@pytest.fixture
def like():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((500, 32)) @ rng.standard_normal((32, 32)) / 8 + 0.2).astype(np.float32)


def test_drawn_vectors_have_the_mean_and_the_variance_of_the_real_ones(like, monkeypatch):
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    vectors = benchmark.Drawn(like, 40_000).block(0, 20_000)
    assert vectors.mean() == pytest.approx(like.mean(), abs=0.05)
    assert vectors.var(axis=0).mean() == pytest.approx(like.var(axis=0).mean(), rel=0.2)


def test_recall_counts_what_exact_search_found(like, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    monkeypatch.setattr(benchmark, "read_pooled", lambda folder: like)
    benchmark.draw(tmp_path, tmp_path, 2_000)
    benchmark.index(tmp_path, "flat", 0)
    benchmark.search(tmp_path, "flat", "exact", SearchOptions("numpy"))
    for found, options in (("all", SearchOptions("faiss", 2000)), ("few", SearchOptions("faiss", 1, 0))):
        benchmark.search(tmp_path, "flat", found, options)
    assert set(benchmark.recall(tmp_path, "all").values()) == {1.0}
    few = benchmark.recall(tmp_path, "few") | benchmark.at_10(tmp_path, "flat", SearchOptions("faiss", 1, 0))
    assert all(0.1 < share < 1 for share in few.values())
    assert benchmark.likeness(tmp_path)["at_rank_1"] > benchmark.likeness(tmp_path)["at_rank_100"] > 1


def test_labels_are_looked_for_among_what_was_found(tmp_path):
    ranked = np.array([[3, 1, 2], [5, 6, 7]])
    (tmp_path / "labels.json").write_text("[[1, 9], [5]]")
    found = benchmark.shares(tmp_path, ranked, ranked[:, ::-1], (1, 3), "asked")
    assert [found[f"recall@{k}_asked"] for k in (1, 3)] == [0.0, 1.0]
    assert [found[f"exact_recall@{k}_by_labels_asked"] for k in (1, 3)] == [0.5, 0.75]
    assert [found[f"recall@{k}_by_labels_asked"] for k in (1, 3)] == [0.0, 0.75]
