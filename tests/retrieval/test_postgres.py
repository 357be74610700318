"""PostgreSQL itself: what is in the table, what an interruption leaves, what is refused."""

import json

import numpy as np
import psycopg
import pytest
from helpers import postgres_server
from helpers.word_encoder import WordEncoder
from helpers.word_index import embed

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.postgres import PostgresIndex
from pplx_jax.retrieval.postgres import index as postgres_index
from pplx_jax.retrieval.postgres.connection import without_password

pytestmark = pytest.mark.slow

ENCODER = WordEncoder(32)
ROWS = [{"id": f"d{n}", "text": f"word{n} list\0"} for n in range(20)]


@pytest.fixture(scope="module")
def url():
    with postgres_server.running() as (address, _):
        yield address


@pytest.fixture
def vectors(tmp_path):
    embed(tmp_path / "embedded", ROWS, ENCODER)
    return tmp_path / "embedded" / "vectors"


def test_any_client_searches_the_table_as_documented(url, vectors, tmp_path):
    build_index(vectors, tmp_path / "plain_sql", engine="postgres", url=url)
    hits = PostgresIndex.load(tmp_path / "plain_sql").search_texts(["word3 list"], ENCODER, 4)[0]
    query = ENCODER.encode(["word3 list"])[0]
    values = "[" + ",".join(map(str, query)) + "]"
    signs = "".join("1" if value >= 0 else "0" for value in query)
    with psycopg.connect(url) as connection:
        connection.execute("set hnsw.ef_search = 1000")
        found = connection.execute(
            f"select id, 1 - (vector <=> '{values}') as score from (select * from pplx_plain_sql order by signs <~> "
            f"b'{signs}' limit 1000) as near order by score desc, id desc limit 4"
        ).fetchall()
        stored = connection.execute("select vector::text, signs::text, described from pplx_plain_sql where id = 'd7'")
        vector, bits, described = stored.fetchone()
        (graph,) = connection.execute(
            "select count(*) from pg_indexes where tablename = 'pplx_plain_sql' and indexdef like '%hnsw%'"
        ).fetchone()
    assert [(hit["id"], hit["score"]) for hit in hits] == [(name, pytest.approx(score)) for name, score in found]
    original = np.concatenate([np.load(path) for path in sorted(vectors.glob("*.npy"))])[7]
    assert json.loads(vector) == original.tolist()
    assert bits == "".join("1" if value >= 0 else "0" for value in original)
    assert described["text"] == "word7 list\ufffd"  # PostgreSQL stores no NUL
    assert graph == 1


def test_an_interrupted_build_leaves_the_former_table(url, vectors, tmp_path, monkeypatch):
    build_index(vectors, tmp_path / "kept", engine="postgres", url=url)
    before = PostgresIndex.load(tmp_path / "kept").search_texts(["word3"], ENCODER, 30)

    def interrupted(*_):
        raise KeyboardInterrupt

    embed(tmp_path / "other", ROWS[:3], ENCODER)
    monkeypatch.setattr(postgres_index, "_comment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "other" / "vectors", tmp_path / "kept", engine="postgres", url=url, replace=True)
    assert PostgresIndex.load(tmp_path / "kept").search_texts(["word3"], ENCODER, 30) == before
    monkeypatch.undo()
    others = {"engine": "postgres", "url": url, "table": "pplx_kept"}
    with pytest.raises(BadInput, match="the table pplx_kept has an index with other texts; .*, or --replace"):
        build_index(tmp_path / "other" / "vectors", tmp_path / "elsewhere", **others)
    with pytest.raises(BadInput, match="kept has an index with table='pplx_kept', not 'pplx_new'"):
        build_index(vectors, tmp_path / "kept", engine="postgres", url=url, table="pplx_new")
    assert PostgresIndex.load(tmp_path / "kept").search_texts(["word3"], ENCODER, 30) == before
    assert build_index(tmp_path / "other" / "vectors", tmp_path / "kept", replace=True, **others)["count"] == 3
    assert len(PostgresIndex.load(tmp_path / "kept").search_texts(["word3"], ENCODER, 30)[0]) == 3


def test_more_candidates_than_the_graph_returns_at_once(url, tmp_path, monkeypatch):
    rows = [{"id": f"d{n:04d}", "text": f"word{n % 7} word{n}"} for n in range(300)]
    embed(tmp_path / "embedded", rows, ENCODER)
    build_index(tmp_path / "embedded" / "vectors", tmp_path / "wide", engine="postgres", url=url)
    opened = PostgresIndex.load(tmp_path / "wide", f"{url}&options=-c%20enable_seqscan%3Doff")
    monkeypatch.setattr(postgres_index, "_MOST_EF", 50)
    assert len(opened.search_texts(["word3"], ENCODER, 200)[0]) == 200


def test_what_is_refused(url, vectors, tmp_path, monkeypatch, capsys):
    with psycopg.connect(url) as connection:
        connection.execute("create table pplx_theirs (x int)")
    with pytest.raises(BadInput, match="pplx_theirs is not that of an index"):
        build_index(vectors, tmp_path / "theirs", engine="postgres", url=url)
    with pytest.raises(BadInput, match="needs --url"):
        build_index(vectors, tmp_path / "index", engine="postgres")
    with pytest.raises(BadInput, match="'x; drop' is no name of a table"):
        build_index(vectors, tmp_path / "index", engine="postgres", url=url, table="x; drop")
    with pytest.raises(BadInput, match="no address of PostgreSQL"):
        build_index(vectors, tmp_path / "index", engine="postgres", url="localhost 8080")
    embed(tmp_path / "floats", ROWS, ENCODER, quantization="tanh")
    with pytest.raises(BadInput, match="'tanh' vectors"):
        build_index(tmp_path / "floats" / "vectors", tmp_path / "index", engine="postgres", url=url)
    assert not (tmp_path / "index").exists()
    build_index(vectors, tmp_path / "index", engine="postgres", url=url)
    with psycopg.connect(url) as connection:
        connection.execute("""comment on table pplx_index is '{"model_fingerprint": "another"}'""")
    with pytest.raises(BadInput, match="pplx_index is of model another"):
        PostgresIndex.load(tmp_path / "index")
    monkeypatch.setenv("PGPASSWORD", "hidden")
    capsys.readouterr()
    arguments = ["search", "--index", str(tmp_path / "index"), "a", "--url", "postgresql://me:secret@127.0.0.1:9/x"]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert "no answer from" in shown and "secret" not in shown and "hidden" not in shown
    assert shown.count("\n") == 1


def test_no_password_is_stored(url, vectors, tmp_path):
    build_index(vectors, tmp_path / "secret", engine="postgres", url=url.replace("postgres:@", "postgres:hidden@"))
    assert "hidden" not in (tmp_path / "secret" / "postgres.json").read_text()
    assert PostgresIndex.load(tmp_path / "secret").count == 20
    assert without_password("postgresql://me@host/db") == "postgresql://me@host/db"
    assert "pw" not in without_password("host=h user=me password=pw")
