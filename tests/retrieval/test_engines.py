"""What every engine does alike: the hits of the exact index, in its order; documents added, replaced and deleted."""

import json
import shutil
import zlib

import pytest
from helpers import postgres_server
from helpers.vespa_stand_in import VespaStandIn, running
from helpers.word_encoder import WordEncoder

from pplx_jax.core.buckets import WRITING
from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.open_index import open_index
from pplx_jax.retrieval.search_index import search_index
from pplx_jax.retrieval.search_options import SearchOptions
from pplx_jax.retrieval.update_index import update_index

ENGINES = [
    "numpy",
    "faiss",
    "jax",
    "vespa",
    pytest.param("postgres", marks=pytest.mark.slow),
]
ROWS = [
    {"id": "a", "text": "read a file", "path": "io.py", "line": 3},
    {"id": "b", "text": "sort a list"},
    {"id": "c/d e", "text": "sort a list"},
    {"id": "c", "text": "sort a list"},
    {"id": "d", "text": ""},
    {"id": "e", "chunks": ["close the socket", "", "open the socket"], "path": "net.py"},
    {"id": "\u00fc\u6771", "text": "sort a \u6771 list 'quoted' \\\\u0000 \\n %s"},
    {"id": "e#0", "text": "looks like a chunk"},
    *({"id": f"f{number}", "text": f"word{number} word{number + 1} list"} for number in range(30)),
]
MORE = [
    {"id": "b", "text": "open a file"},
    {"id": "e", "chunks": ["bind the socket", "open the port"]},
    {"id": "new", "text": "sort a list"},
]
QUERIES = ["sort a list", "open socket", "read file", "word7 word8", "the chunk"]


class Encoder(WordEncoder):
    """A chunk's vector does not depend on its document, so that it is the same in every file."""

    def encode_documents(self, documents, **options):
        return [self.encode(chunks, **options) for chunks in documents]


ENCODER = Encoder(64)


@pytest.fixture(scope="module")
def postgres():
    with postgres_server.running() as server:
        yield server


@pytest.fixture
def make(request, tmp_path):
    """Returns a function that indexes rows with an engine and returns the folder."""

    def build(engine, rows=ROWS, name="index", replace=False, root=tmp_path, **options):
        url = {}
        if engine == "vespa":
            if not stand_ins:
                stand_ins.append(running(VespaStandIn()))
                urls.append(stand_ins[0].__enter__())
            url = {"url": urls[0], "vespa_config_url": urls[0]}
        if engine == "postgres":
            table = f"t{zlib.crc32(str(tmp_path).encode())}_{name}"  # the server is that of all tests
            url = {"url": request.getfixturevalue("postgres")[0], "table": table}
        vectors = embed(tmp_path / f"{name}_embedded", rows, **options)
        build_index(vectors, root / name, engine="numpy" if engine == "jax" else engine, replace=replace, **url)
        return root / name

    stand_ins, urls = [], []
    yield build
    for stand_in in stand_ins:
        stand_in.__exit__(None, None, None)


def embed(folder, rows, encoder=ENCODER, **options):
    folder.mkdir(exist_ok=True)
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed_file(folder / "model", source, folder / "vectors", encoder=encoder, **{"shard_size": 4, **options})
    return folder / "vectors"


def hits_of(folder, engine, k=6, texts=QUERIES):
    """The hits, without the lists of chunks, which Vespa does not show."""
    chosen = SearchOptions(engine) if engine in ("jax", "numpy") else SearchOptions()
    found = open_index(folder).search_texts(texts, ENCODER, k, chosen)
    return [[{**hit, "chunks": None, "score": pytest.approx(hit["score"], abs=1e-6)} for hit in hits] for hits in found]


def plain(folder, k=6, texts=QUERIES):
    """The hits of exact search."""
    found = open_index(folder).search_texts(texts, ENCODER, k, SearchOptions("numpy"))
    return [[{**hit, "chunks": None} for hit in hits] for hits in found]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [ROWS, [row for row in ROWS if "text" in row]], ids=["chunks", "texts"])
def test_hits_and_ties_are_those_of_exact_search(make, engine, rows):
    exact = plain(make("numpy", rows, "exact"), 60)
    index = make(engine, rows)
    assert hits_of(index, engine, 60) == exact
    tied = [hit["id"] for hit in exact[0] if hit["score"] == exact[0][0]["score"]]
    assert tied == ["c/d e", "c", "b"]  # ids descending
    assert all(hit["text"] for hits in exact for hit in hits)  # an empty text is never found
    assert hits_of(index, engine, 2) == [hits[:2] for hits in exact]


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "faiss"])  # which searches int8 only
@pytest.mark.parametrize("options", [{"quantization": "binary"}, {"dims": 32}], ids=["binary", "dims"])
def test_other_forms_of_embeddings(make, engine, options):
    exact = plain(make("numpy", name="exact", **options))
    assert hits_of(make(engine, **options), engine) == exact


@pytest.mark.parametrize("engine", ENGINES)
def test_documents_are_replaced_added_and_deleted(make, tmp_path, engine):
    index = make(engine)
    before = open_index(index).count
    vectors = embed(tmp_path / "more", MORE)
    (tmp_path / "ids.txt").write_text("a\nc/d e\nnot there\nd\n")
    done = update_index(index, embeddings=vectors, delete=tmp_path / "ids.txt")
    assert (done["added"], done["replaced"]) == (4, 2)
    assert done["count"] < before and done["deleted"] in (2, 3)  # an empty text is kept by some engines
    new = [row for row in ROWS if row["id"] not in ("a", "c/d e", "d", "b", "e")] + MORE
    exact = plain(make("numpy", new, "exact"), 60)
    assert hits_of(index, engine, 60) == exact
    assert "e#0" in {hit["id"] for hit in exact[4]}  # a text of that id is no chunk of e
    # The documents of an update can be replaced and deleted too, and one that was deleted can come back.
    (tmp_path / "ids.txt").write_text("new\n")
    back = embed(tmp_path / "back", [ROWS[0], {"id": "b", "text": "sort a list"}])
    assert update_index(index, embeddings=back, delete=tmp_path / "ids.txt")["replaced"] == 1
    new = [row for row in new if row["id"] not in ("new", "b")] + [ROWS[0], ROWS[1]]
    assert hits_of(index, engine) == plain(make("numpy", new, "again"))


@pytest.mark.parametrize("engine", ENGINES)
def test_another_model_is_refused(make, tmp_path, engine):
    index = make(engine)
    with pytest.raises(BadInput, match="made by model words, .* is now other"):
        open_index(index).search_texts(["a"], Encoder(64, fingerprint="other"))
    others = embed(tmp_path / "others", MORE, Encoder(64, fingerprint="other"))
    before = hits_of(index, engine)
    (tmp_path / "ids.txt").write_text("a\n")
    with pytest.raises(BadInput, match="has model_fingerprint='other', the index .* 'words'"):
        update_index(index, embeddings=others, delete=tmp_path / "ids.txt")
    narrow = embed(tmp_path / "narrow", MORE, dims=32)
    with pytest.raises(BadInput, match="has dims=32, the index .* 64"):
        update_index(index, embeddings=narrow)
    assert hits_of(index, engine) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_another_index_is_replaced_only_on_request(make, tmp_path, engine):
    index = make(engine)
    before, description = hits_of(index, engine), _description(index)
    make(engine)  # the same again
    assert hits_of(index, engine) == before and _description(index) == description
    for rows, options, difference in (
        (MORE, {}, "other texts"),
        (ROWS, {"encoder": Encoder(64, fingerprint="other")}, "model_fingerprint='words', not 'other'"),
        (ROWS, {"dims": 32}, "dims=64, not 32"),
        (ROWS, {"overflow": "truncate"}, "overflow='error', not 'truncate'"),
    ):
        shutil.rmtree(tmp_path / "index_embedded")
        with pytest.raises(BadInput, match=f"has an index with {difference}; give another --output, or --replace"):
            make(engine, rows, **options)
        assert hits_of(index, engine) == before and _description(index) == description
    shutil.rmtree(tmp_path / "index_embedded")
    make(engine, MORE, replace=True)
    assert hits_of(index, engine, 60) == plain(make("numpy", MORE, "exact"), 60)
    (tmp_path / "ids.txt").write_text("new\n")
    update_index(index, delete=tmp_path / "ids.txt")
    deleted = hits_of(index, engine)
    with pytest.raises(BadInput, match="has an index with changes of `update`; .* --replace"):
        make(engine, MORE)
    assert hits_of(index, engine) == deleted
    make(engine, MORE, replace=True)
    assert hits_of(index, engine, 60) == plain(tmp_path / "exact", 60)


def _description(index):
    (file,) = (index / name for name in ("index.json", "vespa.json", "postgres.json") if (index / name).exists())
    return file.read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_verb_searches_for_one_text_or_a_file_of_them(make, tmp_path, engine):
    index, exact = make(engine), make("numpy", name="exact")
    options = {"k": 5, "encoder": ENCODER, "engine": engine}
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"id": q, "text": q}) + "\n" for q in QUERIES))
    search_index(index, queries=tmp_path / "queries.jsonl", output=tmp_path / "run.jsonl", **options)
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    for query, row, wanted in zip(QUERIES, rows, plain(exact, 5), strict=True):
        assert search_index(index, query, **options)["hits"] == row["hits"]
        assert [hit["id"] for hit in row["hits"]] == [hit["id"] for hit in wanted]
    other = "vespa" if engine != "vespa" else "faiss"
    with pytest.raises(BadInput, match=f"is searched by .*, not by {other}"):
        search_index(index, "a", encoder=ENCODER, engine=other)
    with pytest.raises(BadInput, match="k=0"):
        search_index(index, "a", encoder=ENCODER, k=0)


@pytest.mark.slow
def test_postgres_keeps_everything_over_a_restart(make, tmp_path, postgres):
    index = make("postgres")
    update_index(index, embeddings=embed(tmp_path / "more", MORE))
    before = hits_of(index, "postgres", 60)
    postgres[1]()
    assert hits_of(index, "postgres", 60) == before


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "jax"])  # which searches that of numpy
def test_an_index_in_a_bucket(make, bucket, tmp_path, engine):
    """It is built, searched, updated, and made again there; an interrupted update does not count."""
    options = {"root": bucket, "shard_size": 20}
    index = make(engine, **options)
    assert hits_of(index, engine, 60) == plain(make("numpy", name="exact"), 60)
    (index / "added" / "00001" / WRITING).write_text("")  # of an update that was killed while it uploaded
    (tmp_path / "ids.txt").write_text("a\nc/d e\nd\n")
    update_index(index, embeddings=embed(tmp_path / "more", MORE), delete=tmp_path / "ids.txt")
    new = [row for row in ROWS if row["id"] not in ("a", "c/d e", "d", "b", "e")] + MORE
    assert hits_of(index, engine, 60) == plain(make("numpy", new, "after"), 60)
    (tmp_path / "ids.txt").write_text("new\n")
    update_index(index, delete=tmp_path / "ids.txt")
    assert "new" not in {hit["id"] for hit in hits_of(index, engine, 60)[0]}
    with pytest.raises(BadInput, match="has an index with changes of `update`; .* --replace"):
        make(engine, **options)
    make(engine, **options, replace=True)
    assert hits_of(index, engine, 60) == plain(tmp_path / "exact", 60)
    if engine in ("numpy", "faiss"):
        assert not [path for path in index.iterdir() if path.name in ("added", "updates.json")]


def test_feed_files_in_a_bucket(bucket, tmp_path):
    vectors = embed(tmp_path / "embedded", ROWS)
    found = []
    for output in (tmp_path / "index", bucket / "index"):
        for _ in range(2):  # the second time replaces the files of the first
            assert not build_index(vectors, output, engine="vespa")["fed"]
            (output / "feed" / "00099.jsonl").write_text("of a larger corpus")
        build_index(vectors, output, engine="vespa")
        files = [*(output / "feed").iterdir(), output / "application" / "services.xml"]
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1] and len(found[0]) == 11


def test_embeddings_in_a_bucket(bucket, tmp_path):
    """Every engine reads them with `open_embeddings`: here the one that writes files, and one that searches them."""
    (bucket / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for root, name in ((bucket, "a"), (tmp_path, "b")):
        embed_file(tmp_path / "model", bucket / "in.jsonl", root / name, encoder=ENCODER, shard_size=4)
    found = []
    for number, source in enumerate((bucket / "a", bucket / "?", tmp_path / "b")):
        output = tmp_path / str(number)
        build_index(source, output / "vespa", engine="vespa")
        build_index(source, output / "numpy", engine="numpy")
        feed = [path.read_bytes() for path in sorted((output / "vespa" / "feed").iterdir())]
        found.append((feed, plain(output / "numpy")))
    assert found[0] == found[1] == found[2] and len(found[0][0]) == 10
