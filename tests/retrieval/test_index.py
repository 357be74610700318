"""From embeddings to hits, and what an index refuses."""

import json
import shutil

import numpy as np
import pytest
from word_encoder import WordEncoder

from pplx_jax.errors import BadInput
from pplx_jax.retrieval.encode import embed_file
from pplx_jax.retrieval.index import Index
from pplx_jax.retrieval.index_builder import build_index
from pplx_jax.retrieval.search_verb import search_index

ROWS = [
    {"id": "a", "text": "read a file", "path": "io.py", "line": 3},
    {"id": "b", "text": "sort a list"},
    {"id": "c", "text": "sort a list"},
    {"id": "d", "text": ""},
    {"id": "e", "chunks": ["close the socket", "open the socket"], "path": "net.py"},
]


def make_index(folder, **options):
    folder.mkdir(exist_ok=True)
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    embed_file(folder / "model", source, folder / "vectors", encoder=WordEncoder(), shard_size=2, **options)
    build_index(folder / "vectors", folder / "index")
    return folder / "index"


@pytest.mark.parametrize("quantization", ["int8", "binary", "ubinary", "none", "tanh"])
def test_hits(tmp_path, quantization):
    path = make_index(tmp_path, quantization=quantization)
    hits = search_index(path, "sort a list", 3, encoder=WordEncoder())["hits"]
    assert [hit["id"] for hit in hits[:2]] == ["c", "b"]  # a tie: the greater id first
    assert hits[0]["score"] == hits[1]["score"] == pytest.approx(1.0)
    assert list(hits[0]) == ["id", "score", "text", "path", "line"]
    assert (hits[0]["text"], hits[0]["path"], hits[0]["line"]) == ("sort a list", None, None)
    file = search_index(path, "read file", 1, encoder=WordEncoder())["hits"][0]
    assert (file["id"], file["path"], file["line"]) == ("a", "io.py", 3)
    chunk = search_index(path, "open socket", 1, encoder=WordEncoder())["hits"][0]
    assert (chunk["id"], chunk["document"], chunk["chunk"], chunk["path"]) == ("e#1", "e", 1, "net.py")


def test_empty_texts_are_never_hits(tmp_path):
    hits = search_index(make_index(tmp_path), "anything", 100, encoder=WordEncoder())["hits"]
    assert len(hits) == 5 and "d" not in [hit["id"] for hit in hits]


def test_little_endian_bits_and_fewer_dimensions(tmp_path):
    path = make_index(tmp_path, quantization="ubinary", bit_order="little", dims=16)
    assert np.load(path / "00000.npy").shape == (2, 2)
    assert search_index(path, "read a file", 1, encoder=WordEncoder())["hits"][0]["score"] == 1.0


def test_what_is_refused(tmp_path):
    path = make_index(tmp_path)
    index = Index.load(path)
    with pytest.raises(BadInput, match="the query is empty"):
        search_index(path, " \n", encoder=WordEncoder())
    with pytest.raises(BadInput, match="made by model words"):
        search_index(path, "a", encoder=WordEncoder(fingerprint="other"))
    vector = WordEncoder().encode(["a"])[0]
    with pytest.raises(BadInput, match="encoded by model other"):
        index.search(vector, model_fingerprint="other")
    with pytest.raises(BadInput, match=r"float32\[32\].*int8\[32\]"):
        index.search(vector.astype(np.float32))
    with pytest.raises(BadInput, match=r"int8\[16\]"):
        index.search(vector[:16])
    with pytest.raises(BadInput, match="at least one hit"):
        index.search(vector, 0)
    with pytest.raises(BadInput, match="no index in"):
        Index.load(tmp_path)
    with pytest.raises(BadInput, match="no embeddings in"):
        build_index(path, tmp_path / "again")
    with pytest.raises(BadInput, match="is no index"):
        build_index(tmp_path / "vectors", tmp_path / "vectors")


def test_the_model_is_found_after_the_whole_folder_moves(tmp_path):
    make_index(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Index.load(tmp_path / "there" / "index").model == tmp_path / "there" / "model"


def test_an_index_is_replaced_whole(tmp_path):
    path = make_index(tmp_path)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    build_index(tmp_path / "vectors", path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert Index.load(path).count == 6
