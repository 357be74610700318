"""Updates of an index folder: what an interruption leaves, what other processes see, what is refused."""

import json

import numpy as np
import pytest
from helpers.word_encoder import WordEncoder
from helpers.word_index import embed, make_index

from pplx_jax.core.errors import BadInput
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.local import index as local_index
from pplx_jax.retrieval.local.index import LocalIndex
from pplx_jax.retrieval.update_index import update_index

ROWS = [{"id": f"d{n}", "text": f"word{n} list"} for n in range(9)]
MORE = [{"id": "d3", "text": "other words"}, {"id": "x", "text": "more words"}]


def found(index, query="list words"):
    return [hit["id"] for hit in LocalIndex(index).search_texts([query], WordEncoder(), 50)[0]]


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "first", ROWS)


@pytest.fixture
def more(tmp_path):
    embed(tmp_path / "more", MORE)
    return tmp_path / "more" / "vectors"


@pytest.mark.parametrize("name", ["build", "write_json"])
def test_an_interrupted_update_does_not_count(index, more, monkeypatch, name):
    before = found(index)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_index, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        update_index(index, embeddings=more)
    assert found(index) == before
    monkeypatch.undo()
    assert update_index(index, embeddings=more) == {"added": 2, "replaced": 1, "count": 10}
    assert sorted(found(index)) == sorted([*(f"d{n}" for n in range(9)), "x"])


def test_an_opened_index_sees_what_others_changed_when_it_changes_something(index, more, tmp_path):
    opened = LocalIndex(index)
    update_index(index, embeddings=more)
    assert opened.delete(["x", "d3", "d5"]) == {"deleted": 3, "missing": 0}
    assert opened.delete(["x", "never"]) == {"deleted": 0, "missing": 2}
    assert sorted(found(index)) == [f"d{n}" for n in range(9) if n not in (3, 5)]
    assert len(list(index.glob("deleted-*.npz"))) <= 2
    with sole_owner(index), pytest.raises(BadInput, match="another process is at work"):
        opened.delete(["d1"])
    # Built again, the folder has nothing of the updates.
    build_index(tmp_path / "first" / "vectors", index, replace=True)
    assert sorted(found(index)) == [f"d{n}" for n in range(9)]


def test_all_may_be_deleted(index, more):
    LocalIndex(index).delete([row["id"] for row in ROWS])
    assert found(index) == [] and LocalIndex(index).count == 0
    update_index(index, embeddings=more)
    assert sorted(found(index)) == ["d3", "x"]


def test_many_deletions_leave_as_many_candidates(tmp_path):
    rows = [{"id": f"d{n:03d}", "text": f"word{n % 9} word{n}"} for n in range(400)]
    index = make_index(tmp_path / "many", rows, shard_size=100)
    opened = LocalIndex(index)
    opened.delete([row["id"] for row in rows[:380]])
    options = local_index.SearchOptions("faiss", candidates=1, least_candidates=20)
    hits = opened.search_texts(["word3"], WordEncoder(), 20, options)[0]
    assert sorted(hit["id"] for hit in hits) == [row["id"] for row in rows[380:]]


def test_damage_is_named(index, more, tmp_path):
    update_index(index, embeddings=more)
    (marks,) = index.glob("deleted-*.npz")
    content = marks.read_bytes()
    marks.write_bytes(content[:20])
    with pytest.raises(BadInput, match="deleted-00001.npz cannot be used"):
        LocalIndex(index)
    np.savez(marks, np.zeros(3, bool), np.zeros(2, bool))
    with pytest.raises(BadInput, match="3 marks of deleted vectors for 9 vectors"):
        LocalIndex(index)
    marks.write_bytes(content)
    (index / "updates.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(BadInput, match="updates.json is not of format 1"):
        LocalIndex(index)
    with pytest.raises(BadInput, match="give --embeddings"):
        update_index(index)
    with pytest.raises(BadInput, match="ids.txt cannot be read"):
        update_index(index, delete=tmp_path / "ids.txt")
