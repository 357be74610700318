"""Candidates by signs, ranked again exactly: what is found of what exact search finds."""

import numpy as np
import pytest
from helpers.word_encoder import WordEncoder
from helpers.word_index import embed

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.quantization import quantize, unpack_bits
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.local import sign_search
from pplx_jax.retrieval.local.index_part import IndexPart
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.local.sign_search import SignSearch, default_lists
from pplx_jax.retrieval.search_options import SearchOptions


class SmallEncoder(WordEncoder):
    """Its vectors are so small that INT8 has a use for all its levels."""

    def encode(self, texts, *, quantization="int8", dims=None, **options):
        return quantize(super().encode(texts, quantization="none", dims=dims, **options) / 16, quantization)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """An index of 3,000 texts of 200 topics, and queries near some of them."""
    folder = tmp_path_factory.mktemp("clustered")
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(400)]
    topics = rng.choice(words, (200, 6))
    texts = [" ".join([*topics[number % 200], *rng.choice(words, 3)]) for number in range(3000)]
    rows = [{"id": f"t{number}", "text": text} for number, text in enumerate(texts)]
    encoder = SmallEncoder(256)
    embed(folder, rows, encoder=encoder, shard_size=700)
    queries = [" ".join([*topics[number][:4], words[number]]) for number in range(0, 200, 2)]
    return folder, queries, encoder


def recall_of(found, expected):
    pairs = zip(found.tolist(), expected.tolist(), strict=True)
    return np.mean([len(set(some) & set(all_of)) / len(all_of) for some, all_of in pairs])


def test_candidates_by_signs_find_what_exact_search_does(clustered):
    folder, texts, encoder = clustered
    build_index(folder / "vectors", folder / "flat")
    index = IndexPart.load(folder / "flat")
    queries = encoder.encode(texts)
    exact, scores = index.nearest(queries, 10, SearchOptions("numpy"))
    for engine in ("faiss", None):  # what it was built for
        found, values = index.nearest(queries, 10, SearchOptions(engine))
        assert recall_of(found, exact) >= 0.995
        same = found == exact
        np.testing.assert_array_equal(values[same], scores[same])  # the very bits
    # Controls: signs alone rank worse, and so do signs of other queries.
    few, _ = index.nearest(queries, 10, SearchOptions("faiss", candidates=1, least_candidates=0))
    assert recall_of(few, exact) < 0.95
    others, _ = index.nearest(np.roll(queries, 1, axis=0), 10, SearchOptions("faiss"))
    assert recall_of(others, exact) < 0.2


def test_candidates_have_the_greatest_products_with_the_query_itself(clustered, monkeypatch):
    folder, texts, encoder = clustered
    build_index(folder / "vectors", folder / "flat")
    queries = encoder.encode(texts)
    signs = SignSearch(folder / "flat", 0)
    products = queries.astype(np.float64) @ unpack_bits(np.load(folder / "flat" / "signs.npy")).T.astype(np.float64)
    found = signs.candidates(queries, 1000)  # four times as many are all
    for row, best in zip(products, found, strict=True):
        assert row[best].min() >= np.delete(row, best).max()
    monkeypatch.setattr(sign_search, "_WIDENING", 1)  # control: the nearest by Hamming distance are others
    assert recall_of(signs.candidates(queries, 1000), found) < 0.95


def test_queries_a_few_at_a_time_find_what_all_at_once_do(clustered, monkeypatch):
    folder, queries, encoder = clustered
    build_index(folder / "vectors", folder / "few", engine="faiss", lists=0)
    vectors, signs = encoder.encode(queries), SignSearch(folder / "few", 0)
    at_once = signs.candidates(vectors, 50)
    monkeypatch.setattr(sign_search, "_COUNTING_BYTES", 7 * 8 * 200 * 257)  # seven queries; a hundred end amid seven
    np.testing.assert_array_equal(np.sort(signs.candidates(vectors, 50)), np.sort(at_once))
    assert signs.candidates(vectors[:0], 3000).shape == (0, 3000)


def test_inverted_lists_read_less_and_find_all_when_all_are_read(clustered):
    folder, texts, encoder = clustered
    described = build_index(folder / "vectors", folder / "lists", engine="faiss", lists=40)
    assert (described["engine"], described["lists"]) == ("faiss", 40)
    index = IndexPart.load(folder / "lists")
    queries = encoder.encode(texts)
    exact, _ = index.nearest(queries, 10, SearchOptions("numpy"))
    by_probes = [
        recall_of(index.nearest(queries, 10, SearchOptions("faiss", probes=probes))[0], exact) for probes in (1, 8, 40)
    ]
    assert by_probes[0] < by_probes[1] < 0.999 or by_probes[1] == by_probes[2]
    assert by_probes[2] >= 0.995
    few, scores = index.nearest(queries, 3000, SearchOptions("faiss", probes=1))
    assert (few[:, -1] == -1).all() and np.isneginf(scores[:, -1]).all()  # one list holds few
    pooled = encoder.encode(texts[:1], quantization="none")
    hits = index.search_pooled(pooled, 3000, SearchOptions("faiss", probes=1))[0]
    assert len(hits) == (few[0] >= 0).sum()
    assert [default_lists(count) for count in (9_999_999, 10_000_000)] == [0, 3162]
    with pytest.raises(BadInput, match="probes=0"):
        index.nearest(queries, 10, SearchOptions(probes=0))


def test_signs_of_int8_are_those_of_the_quantizer(clustered):
    folder, _, _ = clustered
    build_index(folder / "vectors", folder / "flat")
    vectors = ShardedVectors(sorted((folder / "vectors").glob("*.npy")))[0:3000]
    signs = np.load(folder / "flat" / "signs.npy")
    np.testing.assert_array_equal(np.unpackbits(signs, axis=1) == 1, vectors >= 0)
    assert (vectors == 0).any()  # and zero is among the +1


def test_inverted_lists_of_another_index_are_refused(clustered, tmp_path):
    folder, queries, encoder = clustered
    build_index(folder / "vectors", tmp_path / "lists", lists=4)
    embed(tmp_path / "few", [{"id": str(number), "text": f"w{number}"} for number in range(9)], encoder=encoder)
    build_index(tmp_path / "few" / "vectors", tmp_path / "few" / "index", lists=2)
    (tmp_path / "few" / "index" / "signs.faiss").replace(tmp_path / "lists" / "signs.faiss")
    index = IndexPart.load(tmp_path / "lists")
    with pytest.raises(BadInput, match="signs.faiss holds 9 vectors of 256 bits"):
        index.nearest(encoder.encode(queries[:1]), 1)
