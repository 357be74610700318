"""From embeddings to hits, and what an index refuses."""

import errno
import os
import shutil

import numpy as np
import pytest
from helpers.word_encoder import WordEncoder
from helpers.word_index import ROWS, embed, make_index

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.local.index_part import IndexPart
from pplx_jax.retrieval.search_index import search_index


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
    assert sorted(hit.get("document", hit["id"]) for hit in hits) == ["a", "b", "c", "e"]


def test_little_endian_bits_and_fewer_dimensions(tmp_path):
    path = make_index(tmp_path, quantization="ubinary", bit_order="little", dims=16)
    assert np.load(path / "00000.npy").shape == (2, 2)
    assert search_index(path, "read a file", 1, encoder=WordEncoder())["hits"][0]["score"] == 1.0


def test_what_is_refused(tmp_path):
    path = make_index(tmp_path)
    index = IndexPart.load(path)
    with pytest.raises(BadInput, match="the query is empty"):
        search_index(path, " \n", encoder=WordEncoder())
    with pytest.raises(BadInput, match="made by model words"):
        search_index(path, "a", encoder=WordEncoder(fingerprint="other"))
    query = WordEncoder().encode(["a"])
    with pytest.raises(BadInput, match=r"float32\[32\].*int8\[32\]"):
        index.nearest(query.astype(np.float32), 10)
    with pytest.raises(BadInput, match=r"int8\[16\]"):
        index.nearest(query[:, :16], 10)
    with pytest.raises(BadInput, match="at least one hit"):
        index.nearest(query, 0)
    with pytest.raises(BadInput, match="no index in"):
        IndexPart.load(tmp_path)
    with pytest.raises(BadInput, match="no embeddings in"):
        build_index(path, tmp_path / "again")
    with pytest.raises(BadInput, match="in the way and no index"):
        build_index(tmp_path / "vectors", tmp_path / "vectors")


def test_the_model_is_found_after_the_whole_folder_moves(tmp_path):
    make_index(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert IndexPart.load(tmp_path / "there" / "index").model == tmp_path / "there" / "model"


def test_the_model_is_found_from_behind_a_link(tmp_path):
    (tmp_path / "disk" / "deep" / "work").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep" / "work", target_is_directory=True)
    (tmp_path / "link" / "model").mkdir()
    path = make_index(tmp_path / "link")
    assert IndexPart.load(path).model == tmp_path / "disk" / "deep" / "work" / "model"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "read"}\n')
    embed_file(tmp_path / "elsewhere" / "model", rows, tmp_path / "link" / "others", encoder=WordEncoder())
    build_index(tmp_path / "link" / "others", path, replace=True)
    assert IndexPart.load(path).model == tmp_path / "elsewhere" / "model"


def test_an_index_is_replaced_whole(tmp_path):
    path = make_index(tmp_path)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    build_index(tmp_path / "vectors", path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert IndexPart.load(path).count == 6


@pytest.mark.parametrize("content", ['{"name": "theirs"}', '{"format": 2}', "[]", "theirs"])
def test_an_index_of_others_is_left_alone(tmp_path, content):
    make_index(tmp_path / "ours")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "index.json").write_text(content)
    with pytest.raises(BadInput, match="theirs is in the way and no index"):
        build_index(tmp_path / "ours" / "vectors", theirs)
    assert (theirs / "index.json").read_text() == content


def test_vectors_are_linked_and_outlive_the_embeddings(tmp_path):
    path = make_index(tmp_path)
    assert (path / "00000.npy").samefile(tmp_path / "vectors" / "00000.npy")
    shutil.rmtree(tmp_path / "vectors")
    assert search_index(path, "read a file", 1, encoder=WordEncoder())["hits"][0]["id"] == "a"


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr("os.link", refuse)
    path = make_index(tmp_path)
    assert not (path / "00000.npy").samefile(tmp_path / "vectors" / "00000.npy")
    assert search_index(path, "read a file", 1, encoder=WordEncoder())["hits"][0]["id"] == "a"


def test_what_cannot_be_built(tmp_path):
    path = make_index(tmp_path)
    with pytest.raises(BadInput, match="lists=7 for 6 vectors"):
        build_index(tmp_path / "vectors", path, lists=7)
    with pytest.raises(BadInput, match="the engine numpy has no lists"):
        build_index(tmp_path / "vectors", path, engine="numpy", lists=2)
    with open(tmp_path / "vectors" / "00001.jsonl", "ab") as file:
        file.write(b'{"id": "more", "text": "", "row": 9}\n')
    with pytest.raises(BadInput, match="00001.jsonl: 3 lines of 2 vectors"):
        build_index(tmp_path / "vectors", path)
    assert IndexPart.load(path).count == 6  # the one that was there
    (tmp_path / "vectors" / "00001.npy").write_bytes(b"")
    with pytest.raises(BadInput, match="is damaged"):
        build_index(tmp_path / "vectors", path)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    signs = make_index(tmp_path / "signs", quantization="ubinary")
    with pytest.raises(BadInput, match="needs int8"):
        build_index(tmp_path / "signs" / "vectors", signs, engine="faiss")
    with pytest.raises(BadInput, match="has no signs"):
        search_index(signs, "a file", engine="faiss", encoder=WordEncoder())
    with pytest.raises(BadInput, match="not ubinary"):
        search_index(signs, "a file", engine="jax", encoder=WordEncoder())


@pytest.mark.parametrize(
    "line", [b"{", b"\xff", b"[]", b'{"text": "a", "row": 1}', b'{"id": 7, "text": "a", "row": 1}', b'{"id": "a"}']
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = make_index(tmp_path)
    lines = (tmp_path / "vectors" / "00000.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "vectors" / "00000.jsonl").unlink()  # the index has the same file
    (tmp_path / "vectors" / "00000.jsonl").write_bytes(line + b"\n" + lines[1])
    with pytest.raises(BadInput, match="vectors/00000.jsonl, line 1: .*; delete the folder and embed again"):
        build_index(tmp_path / "vectors", tmp_path / "other")
    (path / "00000.jsonl").write_bytes(line + b"\n")
    with pytest.raises(BadInput, match="00000.jsonl, vector [01]: .*; make it again"):
        search_index(path, "a file", encoder=WordEncoder())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("offsets.npy", np.array([5, 7, 9, 11, 13, 15])),
        ("offsets.npy", np.array([-1] * 6)),
        ("offsets.npy", np.zeros(6)),
        ("empty.npy", np.array([False])),
        ("empty.npy", np.zeros(6, np.int64)),
        ("places.npy", np.zeros((6, 2), np.int64)),
        ("documents.npy", np.zeros(5, np.int64)),
        ("signs.npy", np.zeros((1, 4), np.uint8)),
        ("signs.npy", np.zeros((6, 1), np.uint8)),
        ("signs.npy", np.zeros((6, 4), np.int8)),
        ("00000.npy", np.zeros((1, 32), np.int8)),
    ],
)
def test_arrays_of_another_index_are_refused(tmp_path, name, content):
    path = make_index(tmp_path)
    (path / name).unlink()
    np.save(path / name, content)
    with pytest.raises(BadInput, match="cannot be used"):
        search_index(path, "read a file", encoder=WordEncoder())


@pytest.mark.parametrize("name", ["00001.npy", "00000.npy", "places.npy", "signs.npy", "offsets.npy"])
def test_a_damaged_index_is_named(tmp_path, name):
    path = make_index(tmp_path)
    (path / name).unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        search_index(path, "a file", encoder=WordEncoder())
    (path / name).write_bytes(b"")
    with pytest.raises(BadInput, match="cannot be used"):
        search_index(path, "a file", encoder=WordEncoder())


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_the_devices_find_the_same(tmp_path, quantization):
    path = make_index(tmp_path, quantization=quantization)
    for query in ("sort a list", "open the file"):
        found = [search_index(path, query, 9, engine=engine, encoder=WordEncoder()) for engine in ("numpy", "jax")]
        assert found[0] == found[1] and len(found[0]["hits"]) == 4


def test_several_embeddings_are_one_index(tmp_path):
    """The rows are those of one file in two: hits, ties and documents are those of one index of it."""
    whole = make_index(tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    for name, rows in {"a": ROWS[:1], "b": ROWS[1:2], "c": ROWS[2:]}.items():  # each has a row 1
        embed(tmp_path / name, rows, shard_size=2)
        (tmp_path / name / "vectors").rename(tmp_path / "parts" / name)
    for given in (tmp_path / "parts", tmp_path / "parts" / "?"):
        build_index(given, tmp_path / "index")
        for query in ("sort a list", "open socket", "read file"):
            found, expected = (
                search_index(path, query, 6, encoder=WordEncoder()) for path in (tmp_path / "index", whole)
            )
            assert found == expected
    assert np.load(tmp_path / "index" / "documents.npy").tolist() == [0, 1, 2, 3, 4, 4]


def test_several_embeddings_must_agree(tmp_path):
    embed(tmp_path / "a", ROWS)
    embed(tmp_path / "b", ROWS, quantization="binary")
    with pytest.raises(BadInput, match=r"b/vectors has quantization='binary', .*a/vectors 'int8'; embeddings that are"):
        build_index(str(tmp_path / "*" / "vectors"), tmp_path / "index")
    with pytest.raises(BadInput, match="no embeddings in"):
        build_index(tmp_path, tmp_path / "index")
    with pytest.raises(BadInput, match=r"\*\.vec: no file or folder matches"):
        build_index(tmp_path / "*.vec", tmp_path / "index")
