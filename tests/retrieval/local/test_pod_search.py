"""Two processes of two devices find what one finds by NumPy: every document, every bit of a score, every tie."""

import json

import numpy as np
import pytest
from helpers import job
from helpers.tiny import tiny_config, tiny_vocabulary

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.exact_search import top_k
from pplx_jax.retrieval.local.pod_search import PodSearch
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.search_index import search_index
from pplx_jax.retrieval.update_index import update_index

WORDS = "read write open close sort file list index socket table".split()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index with ties, chunks, an update and deletions; queries."""
    folder = tmp_path_factory.mktemp("pod")
    vocabulary = tiny_vocabulary(folder)
    config = tiny_config(vocabulary, max_length=64)
    save_model(folder / "model", config, vocabulary, initial_params(config, 0), stage="pair", kind="context_v1")
    rng = np.random.default_rng(0)
    rows = [{"id": f"d{n}", "text": " ".join(rng.choice(WORDS, 3))} for n in range(150)]
    rows += [{"id": f"copy{n}", "text": "read the file"} for n in range(40)]
    rows += [{"id": f"e{n}", "chunks": [" ".join(rng.choice(WORDS, 2)) for _ in range(3)]} for n in range(20)]
    embed_file(folder / "model", write(folder / "in.jsonl", rows), folder / "vectors", shard_size=50)
    more = [{"id": "copy3", "text": "sort the list"}, {"id": "copyx", "text": "read the file"}]
    embed_file(folder / "model", write(folder / "more.jsonl", more), folder / "more")
    build_index(folder / "vectors", folder / "index")
    (folder / "ids.txt").write_text("d3\ncopy7\n")
    update_index(folder / "index", embeddings=folder / "more", delete=folder / "ids.txt")
    queries = ["read the file", "sort list", "open socket table", "close index"]
    write(folder / "queries.jsonl", [{"id": f"q{n}", "text": text} for n, text in enumerate(queries)])
    return folder


@pytest.mark.slow
def test_two_processes_write_the_rankings_of_one(folder):
    words = ["search", f"--index={folder / 'index'}", f"--queries={folder / 'queries.jsonl'}", "--k=60"]
    given = ["--engine=jax", f"--output={folder / 'two.jsonl'}"]
    job.finish(job.start_verb([*words, *given], count=2, devices=2))
    queries, output = folder / "queries.jsonl", folder / "one.jsonl"
    search_index(folder / "index", queries=queries, output=output, k=60, engine="numpy")
    assert (folder / "two.jsonl").read_text() == output.read_text()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    tied = [hit["id"] for hit in rows[0]["hits"] if hit["score"] == rows[0]["hits"][0]["score"]]
    assert len(tied) == 39 and tied == sorted(tied, reverse=True) and "copyx" in tied
    said = job.ends(job.start_verb([*words, f"--output={folder / 'no.jsonl'}"], count=2, devices=1))
    assert said[0] == [2, 2] and "by --engine jax only" in said[1][0]


@pytest.mark.parametrize("processes", [1, 3, 7])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_shares_of_any_size_give_the_whole_ranking(tmp_path, monkeypatch, processes, k):
    """The processes one after the other; some have no row, or none that can be a hit."""
    rng = np.random.default_rng(1)
    vectors = rng.integers(-2, 3, (5, 16)).astype(np.int8)[rng.integers(0, 5, 20)]
    places, excluded = rng.permutation(20), np.arange(20) < 8
    np.save(tmp_path / "all.npy", vectors)
    queries = vectors[10:13]
    searches, packed = [], []
    for index in range(processes):
        monkeypatch.setattr("pplx_jax.retrieval.local.pod_search.own_share", lambda index=index: (index, processes))
        searches.append(PodSearch(ShardedVectors([tmp_path / "all.npy"]), places, excluded))
    monkeypatch.setattr(
        "pplx_jax.retrieval.local.pod_search.gather_rows", lambda own, counts: packed.append(own) or [own]
    )
    for search in searches:
        search.top_k(queries, k)
    monkeypatch.setattr("pplx_jax.retrieval.local.pod_search.gather_rows", lambda own, counts: packed)
    expected = top_k(queries, vectors, places, k, excluded=excluded)
    for search in searches:
        found = search.top_k(queries, k)
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
