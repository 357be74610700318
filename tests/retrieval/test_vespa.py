"""Vespa: what is written and sent, and hits of a stand-in server that ranks by the schema it was given."""

import json
import pathlib
import types

import numpy as np
import pytest
from helpers.vespa_schema import Schema, SchemaError, unpack_bits
from helpers.vespa_stand_in import VespaStandIn, running
from helpers.word_encoder import WordEncoder

from pplx_jax.core.errors import BadInput
from pplx_jax.core.http_client import HttpClient
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.packed_signs import packed_signs
from pplx_jax.retrieval.search_index import search_index
from pplx_jax.retrieval.vespa import VespaIndex, build, search
from pplx_jax.retrieval.vespa.application import VespaApplication

GOLDEN = pathlib.Path(__file__).with_name("vespa_golden")
ROWS = [
    {"id": "a", "text": "read a file", "path": "io.py", "line": 3},
    {"id": "b", "text": "sort a list"},
    {"id": "c/d e", "text": "sort a \x01 list quickly"},
    {"id": "d", "text": ""},
    {"id": "e", "chunks": ["close the socket", "", "open the socket"], "path": "net.py"},
    *({"id": f"f{number}", "text": f"word{number} word{number + 1} list"} for number in range(30)),
]
QUERIES = ["sort a list", "open socket", "read file", "word7 word8"]


def embed(folder, rows=ROWS, **options):
    folder.mkdir(exist_ok=True)
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"shard_size": 4, **options}
    embed_file(folder / "model", source, folder / "vectors", encoder=WordEncoder(64), **options)
    return folder / "vectors"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return embed(tmp_path_factory.mktemp("vespa"))


@pytest.fixture
def server():
    stand_in = VespaStandIn()
    with running(stand_in) as url:
        yield types.SimpleNamespace(vespa=stand_in, url=url)


def built(vectors, output, server, **options):
    return build(vectors, output, url=server.url, config_url=server.url, startup_seconds=5, **options)


def assert_same_hits(found, expected):
    assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    for one, other in zip(found, expected, strict=True):
        other.pop("chunks", None)  # Vespa shows the best chunk alone
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-6), "text": one["text"]}
        assert one["text"].replace("\ufffd", "\x01") == other["text"]


# The table of docs.vespa.ai/en/binarizing-vectors.html, and the example of unpack_bits in the ranking reference.
@pytest.mark.parametrize(
    ("values", "cell"), [([1] * 8, -1), ([-1] * 8, 0), ([1] + [-1] * 7, -128), ([2] + [-1] * 6 + [1], -127)]
)
def test_signs_are_packed_as_vespa_packs_them(values, cell):
    signs = np.sign(np.array([values])).astype(np.int8)
    assert packed_signs(signs, "binary", "big").view(np.int8).tolist() == [[cell]]
    little = np.packbits(signs >= 0, axis=1, bitorder="little")
    assert packed_signs(little, "ubinary", "little").view(np.int8).tolist() == [[cell]]
    assert (unpack_bits([cell]) * 2 - 1).tolist() == signs[0].tolist()
    assert unpack_bits([9]).tolist() == [0, 0, 0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "application", "int8"),
    [
        ("local", VespaApplication(), True),
        ("cluster", VespaApplication(hnsw=False, paged=True, hosts=("one", "t&o"), redundancy=2, max_hits=5), True),
        ("signs_only", VespaApplication(links_per_node=8), False),
    ],
)
def test_application_packages_are_as_they_were_reviewed(name, application, int8):
    files = application.files(64, int8=int8)
    golden = {
        str(path.relative_to(GOLDEN / name)): path.read_text() for path in (GOLDEN / name).rglob("*") if path.is_file()
    }
    assert files == golden
    schema = Schema(files["schemas/passage.sd"])
    assert schema.metric == {"signs": "hamming"}
    assert ("vectors" in schema.fields) == int8


def test_the_checker_refuses_schemas_that_vespa_would():
    text = VespaApplication().files(64, int8=True)["schemas/passage.sd"]
    for good, bad in [
        ("tensor<int8>(chunk{}, x[8]) {", "tensor<float>(chunk{}, x[8]) {"),  # Hamming distance of floats
        ("indexing: attribute | index", "indexing: attribute"),  # a graph without an index
        ("attribute(vectors)", "attribute(vector)"),  # no such field
        ("query(q_vector) tensor<int8>(x[64])", "query(q_vector) tensor<int8>(x[8])"),  # dimensions that do not fit
        ("reduce(chunk_similarity(), max, chunk)", "chunk_similarity()"),  # a score that is no number
        ("distance-metric: hamming", "distance-metric: cosine"),
        ("    rank-profile int8 {", "    rank-profile int8 {\n }"),
        ("x[64]", "x[sixty]"),
    ]:
        assert good in text
        with pytest.raises(SchemaError):
            Schema(text.replace(good, bad))


def test_what_is_sent(vectors, tmp_path):
    report = build(vectors, tmp_path / "index")
    assert report == {"dims": 64, "quantization": "int8", "count": 37, "documents": 34, "fed": False}
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "index/feed").iterdir())
        for line in path.read_text().splitlines()
    ]
    stored = np.concatenate([np.load(path) for path in sorted(vectors.glob("*.npy"))])
    socket = next(line for line in lines if line["put"] == "id:pplx:passage::e")
    assert socket["fields"] == {
        "id": "e",
        "chunk_ids": ["e#0", "e#1", "e#2"],
        "chunks": ["close the socket", "", "open the socket"],
        "path": "net.py",
        "vectors": {"blocks": {"0": stored[4].tobytes().hex(), "2": stored[6].tobytes().hex()}},
        "signs": {
            "blocks": {label: np.packbits(stored[row] >= 0).tobytes().hex() for label, row in (("0", 4), ("2", 6))}
        },
    }
    assert not any(line["put"].endswith("::d") for line in lines)  # nothing but an empty text

    index = VespaIndex.load(tmp_path / "index")
    query = np.where(np.arange(64) % 3 == 0, 0.25, -0.25).astype(np.float32)
    assert index.request(query, 5, candidates=200) == json.loads((GOLDEN / "query.json").read_text())


@pytest.mark.parametrize(
    ("options", "profile"),
    [
        ({}, "int8"),
        ({"quantization": "ubinary"}, "signs"),
        ({"quantization": "ubinary", "bit_order": "little"}, "signs"),
        ({"quantization": "binary"}, "signs"),
        ({"dims": 32}, "int8"),
    ],
)
def test_hits_are_those_of_the_exact_index(tmp_path, server, options, profile):
    vectors = embed(tmp_path, **options)
    build_index(vectors, tmp_path / "exact")
    assert built(vectors, tmp_path / "index", server)["fed"]
    for query in QUERIES:
        found = search(tmp_path / "index", query, 10, encoder=WordEncoder(64))
        exact = search_index(tmp_path / "exact", query, 5, encoder=WordEncoder(64))["hits"]
        assert found["coverage"] == 100
        assert_same_hits(found["hits"][:5], exact)
    assert {request["ranking.profile"] for request in server.vespa.requests if request["hits"]} == {profile}


def test_packed_documents_are_ranked_by_the_int8_query(tmp_path, server):
    vectors = embed(tmp_path, quantization="ubinary", bit_order="little")
    built(vectors, tmp_path / "index", server)
    found = search(tmp_path / "index", "word7 word8", 5, ranking="asymmetric", encoder=WordEncoder(64))["hits"]
    query = WordEncoder(64).encode(["word7 word8"])[0].astype(float)
    rows = [row for row in ROWS if row.get("text")]
    signs = WordEncoder(64).encode([row["text"] for row in rows], quantization="binary").astype(float)
    cosines = signs @ query / np.linalg.norm(query) / 8
    expected = sorted(zip(cosines, (row["id"] for row in rows), strict=True), reverse=True)[:5]
    assert [hit["id"] for hit in found] == [identity for _, identity in expected]
    assert [hit["score"] for hit in found] == pytest.approx([score for score, _ in expected])
    # The control: documents whose bytes are the other way round rank otherwise.
    for fields in server.vespa.documents.values():
        for label, cells in fields["signs"].items():
            swapped = np.packbits(np.unpackbits(cells.view(np.uint8), bitorder="little"))
            fields["signs"][label] = swapped.view(np.int8)
    other = search(tmp_path / "index", "word7 word8", 5, ranking="asymmetric", encoder=WordEncoder(64))["hits"]
    assert [hit["id"] for hit in other] != [hit["id"] for hit in found]


def test_few_candidates_are_ranked_again_and_no_more(vectors, tmp_path, server):
    built(vectors, tmp_path / "index", server)
    encoder = WordEncoder(64)
    wide = search(tmp_path / "index", "word7 list", 3, encoder=encoder)["hits"]
    narrow = search(tmp_path / "index", "word7 list", 3, candidates=3, exact=True, encoder=encoder)["hits"]
    assert [server.vespa.requests[-1][key] for key in ("hits", "ranking.rerankCount")] == [3, 3]
    assert "approximate: false" in server.vespa.requests[-1]["yql"]
    assert narrow[0] == wide[0] and len(narrow) == 3


def test_feeding_goes_on_after_a_fault_and_retries_passing_ones(vectors, tmp_path, server):
    server.vespa.faults = [429, 503]
    built(vectors, tmp_path / "index", server, connections=1)
    assert server.vespa.puts == 34 + 2 and len(server.vespa.documents) == 34

    server.vespa.puts = 0
    assert built(vectors, tmp_path / "index", server)["documents"] == 34 and server.vespa.puts == 0

    server.vespa.documents.clear()  # whoever starts over removes them
    original = server.vespa._put

    def full_after_ten(path, operation):
        if server.vespa.puts >= 10:
            server.vespa.faults = [507]
        return original(path, operation)

    server.vespa._put = full_after_ten
    with pytest.raises(BadInput, match="no space left"):
        built(vectors, tmp_path / "index", server, connections=1)
    finished = json.loads((tmp_path / "index/fed.json").read_text())
    assert 0 < finished["documents"] <= 10
    server.vespa._put, server.vespa.puts, server.vespa.faults = original, 0, []
    assert built(vectors, tmp_path / "index", server, connections=3)["documents"] == 34
    assert server.vespa.puts == 34 - finished["documents"] and len(server.vespa.documents) == 34
    assert set(server.vespa.documents) >= {"c/d e", "e", "a"}


def test_a_number_of_documents_that_is_wrong_is_no_index(tmp_path, server):
    twice = embed(tmp_path / "twice", [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}])
    with pytest.raises(BadInput, match="holds 1 documents, 2 were put.*equal ids replaced"):
        built(twice, tmp_path / "index", server)
    other = embed(tmp_path / "other", [{"id": "b", "text": "one"}])
    with pytest.raises(BadInput, match="holds 1 documents of an earlier feed; give --replace"):
        built(other, tmp_path / "other_index", server)
    assert set(server.vespa.documents) == {"a"} and not (tmp_path / "other_index").exists()
    once = embed(tmp_path / "once", [{"id": "a", "text": "one"}])
    built(once, tmp_path / "index", server, replace=True)
    server.vespa.documents["c"] = server.vespa.documents["a"]
    with pytest.raises(BadInput, match="holds 2 documents, 1 were put.*earlier feed; run this again with --replace"):
        built(once, tmp_path / "index", server)
    assert built(once, tmp_path / "index", server, replace=True)["documents"] == 1
    assert set(server.vespa.documents) == {"a"}


def test_a_replaced_index_loses_all_its_documents_and_resumes(vectors, tmp_path, server):
    built(vectors, tmp_path / "index", server)
    other = embed(tmp_path / "other", ROWS[4:], shard_size=8)
    original, server.vespa.puts = server.vespa._put, 0

    def full(path, operation):
        server.vespa.faults = [507] if server.vespa.puts >= 20 else []
        return original(path, operation)

    server.vespa._put = full
    with pytest.raises(BadInput, match="no space left"):
        built(other, tmp_path / "index", server, replace=True, connections=1)
    held = set(server.vespa.documents)
    assert len(held) == 20 and "a" not in held
    server.vespa._put, server.vespa.faults, server.vespa.puts = original, [], 0
    assert built(other, tmp_path / "index", server, replace=True)["documents"] == 31
    assert server.vespa.puts == 31 - 16 and len(server.vespa.documents) == 31


def test_what_is_refused(vectors, tmp_path, server):
    floats = embed(tmp_path / "floats", quantization="tanh")
    with pytest.raises(BadInput, match="'tanh' vectors of 64 dimensions; the engine vespa takes int8"):
        build(floats, tmp_path / "index")
    narrow = embed(tmp_path / "narrow", dims=12)
    with pytest.raises(BadInput, match="multiple of 8"):
        build(narrow, tmp_path / "index")
    with pytest.raises(BadInput, match="in the way and no Vespa index"):
        build(vectors, floats)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "vespa.json").write_text("{}")
    with pytest.raises(BadInput, match="in the way and no Vespa index"):
        build(vectors, tmp_path / "theirs")
    with pytest.raises(BadInput, match="no Vespa index in"):
        VespaIndex.load(tmp_path)
    with pytest.raises(BadInput, match="redundancy=2 on 1 hosts"):
        VespaApplication(redundancy=2)
    with pytest.raises(BadInput, match="is not a URL"):
        build(vectors, tmp_path / "index", url="localhost:8080")
    with pytest.raises(BadInput, match="refuses document.*no application.*deployed"):
        build(vectors, tmp_path / "index", url=server.url)
    with pytest.raises(BadInput, match="cannot answer.*no application"):
        search(tmp_path / "index", "a", encoder=WordEncoder(64))
    built(vectors, tmp_path / "index", server)
    with pytest.raises(BadInput, match="the query is empty"):
        search(tmp_path / "index", " ", encoder=WordEncoder(64))
    with pytest.raises(BadInput, match="made by model words"):
        search(tmp_path / "index", "a", encoder=WordEncoder(64, fingerprint="other"))
    with pytest.raises(BadInput, match="no rank profile 'bm25'.*int8, asymmetric, signs"):
        search(tmp_path / "index", "a", ranking="bm25", encoder=WordEncoder(64))
    with pytest.raises(BadInput, match="k=5, candidates=2"):
        search(tmp_path / "index", "a", 5, candidates=2, encoder=WordEncoder(64))
    with pytest.raises(BadInput, match="configured limit: 10000"):
        search(tmp_path / "index", "a", 10_001, encoder=WordEncoder(64))
    with pytest.raises(BadInput, match=r"no answer from .*:9 \(Failed to .* refused\); start the service"):
        HttpClient(server.url.rpartition(":")[0] + ":9", retries=0).send("GET", "/")


def test_the_verbs_hand_over_to_it(vectors, tmp_path, server):
    given = {"url": server.url, "vespa_config_url": server.url}
    assert build_index(vectors, tmp_path / "index", engine="vespa", **given)["fed"]
    expected = search(tmp_path / "index", "read file", 3, candidates=60, encoder=WordEncoder(64))
    for engine in ("vespa", None):
        options = {"engine": engine, "candidates": 20, "url": server.url, "encoder": WordEncoder(64)}
        assert search_index(tmp_path / "index", "read file", 3, **options)["hits"] == expected["hits"]
