"""Hard negatives against a ranking by brute force, and the table that the triplet stage then reads."""

import dataclasses
import itertools
import os
import types

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.batch_spec import TripletBatch
from pplx_jax.data.batches.order import shuffled
from pplx_jax.data.batches.packed_batch import triplet_batch
from pplx_jax.data.tokens.kinds import KIND_OF_FOLDER
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_hashes import token_hashes
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.mining import search as mining_search
from pplx_jax.mining.mine import Mining, mine_table

PAIRS, WIDTH = 60, 8
FIRST_DOCUMENT = 100  # token ids: query i is [10 + i], document i starts with 100 + i
UNLIKE_THEIR_DOCUMENT = (4, 17, 33)
VOCABULARY = types.SimpleNamespace(
    fingerprint="ab" * 32,
    size=500,
    pad_id=0,
    mask_id=2,
    separator_id=3,
    path="stub.model",
    decode=lambda ids: " ".join(f"t{token}" for token in ids),
)
WINDOW = Mining(negatives=3, first_rank=5, last_rank=20, ceiling=0.8, seed=1)
SHARED = Mining(negatives=3, first_rank=5, last_rank=20, ceiling=0.8, part_size=7)  # in nine parts, the last of four


class Vectors:
    """An embedder that looks a text's vector up by its first token, and remembers what it was asked."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.documents = generator.normal(size=(PAIRS, WIDTH)).astype(np.float32)
        self.queries = (0.8 * self.documents + 0.5 * generator.normal(size=(PAIRS, WIDTH))).astype(np.float32)
        self.queries[list(UNLIKE_THEIR_DOCUMENT)] *= -1
        self.vocabulary = VOCABULARY
        self.fingerprint = "cd" * 32
        self.asked: list[int] = []

    def encode_tokens(self, ids):
        self.asked += [int(text[0]) for text in ids]
        return np.stack([self._vector(int(text[0])) for text in ids])

    def _vector(self, token):
        return self.documents[token - FIRST_DOCUMENT] if token >= FIRST_DOCUMENT else self.queries[token - 10]

    def cosines(self) -> np.ndarray:
        """Cosine of every query with every document, as INT8, in float64."""
        units = []
        for vectors in (self.queries, self.documents):
            integers = np.rint(127 * np.tanh(vectors.astype(np.float64)))
            units.append(integers / np.linalg.norm(integers, axis=1, keepdims=True))
        return units[0] @ units[1].T


def document(i, ending=()) -> list[int]:
    return [FIRST_DOCUMENT + i, *[5] * (i % 4), *ending]


def pair_table(folder, documents=None) -> TokenTable:
    features = {
        "query": Ragged.from_arrays([[10 + i] for i in range(PAIRS)]),
        "document": Ragged.from_arrays(documents or map(document, range(PAIRS))),
        "document_hash": np.arange(PAIRS, dtype=np.int32),
        "source": (np.arange(PAIRS) % 2).astype(np.int32),
    }
    write_table(folder, "pair", VOCABULARY, features, notes={"sources": ["a", "b"]})
    return TokenTable.open(folder)


def mine(tmp_path, mining=WINDOW, *, name="triplet", embedder=None, documents=None):
    """The mined table and the counts."""
    table = pair_table(tmp_path / "pair", documents)
    counts = mine_table(embedder or Vectors(), table, VOCABULARY, mining, tmp_path / name)
    return TokenTable.open(tmp_path / name, kind="triplet", vocabulary=VOCABULARY), counts


def decoded(table: TokenTable, copies: int = PAIRS) -> dict[int, list[int]]:
    """Query -> its negatives, both as rows of the pair table, read off the tokens of the mined one; of documents of the
    same row modulo `copies` the first.
    """
    documents = [int(text[0]) - FIRST_DOCUMENT for text in table["document"]]
    found = {}
    for row in range(table.count):
        query = int(table["query"][row][0]) - 10
        assert documents[row] % copies == query % copies  # its positive stands in its own row
        found[query] = [documents[place] for place in table["negatives"][row]]
    return found


def allowed(mining: Mining, among=range(PAIRS)) -> dict[int, set[int]]:
    """Query -> documents that may be its negatives: by sorting all of them."""
    cosines, result = Vectors().cosines(), {}
    for query in among:
        ranked = sorted(among, key=lambda document: -cosines[query, document])
        positive = cosines[query, query]
        ceiling = positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
        result[query] = {
            document
            for document in ranked[mining.first_rank - 1 : mining.last_rank]
            if cosines[query, document] <= ceiling and document != query
        }
    return result


@pytest.mark.parametrize(("first", "last", "ceiling"), [(5, 20, 0.8), (2, 9, 0.9), (20, 60, 0.3), (3, 10, 1.0)])
def test_negatives_are_of_the_window_and_under_the_ceiling(tmp_path, first, last, ceiling):
    mining = Mining(negatives=3, first_rank=first, last_rank=last, ceiling=ceiling)
    table, counts = mine(tmp_path, mining)
    found, choices = decoded(table), allowed(mining)
    assert set(found) == {query for query in choices if len(choices[query]) >= 3}
    for query, negatives in found.items():
        assert len(set(negatives)) == 3 and set(negatives) <= choices[query]
    assert counts["queries"] == len(found) == table.count
    # Control: both ends of the window are in it, and the ceiling refuses some of it.
    for narrower in (Mining(3, first + 1, last, ceiling), Mining(3, first, last - 1, ceiling)):
        fewer = allowed(narrower)
        assert any(not set(negatives) <= fewer[query] for query, negatives in found.items())
    assert choices != allowed(Mining(3, first, last, ceiling=9.0))


def test_every_document_of_the_window_can_be_drawn(tmp_path):
    choices, drawn = allowed(WINDOW), {}
    for seed in range(20):
        table, _ = mine(tmp_path, Mining(3, 5, 20, 0.8, seed=seed))
        for query, negatives in decoded(table).items():
            drawn.setdefault(query, set()).update(negatives)
    missed = sum(len(choices[query] - drawn[query]) for query in drawn)
    assert missed < 0.05 * sum(len(choices[query]) for query in drawn)


def test_queries_with_too_few_negatives_are_left_out_and_counted(tmp_path):
    table, counts = mine(tmp_path)
    # Their positive is the last document they would find: nothing of the window is below it.
    assert not set(decoded(table)) & set(UNLIKE_THEIR_DOCUMENT)
    assert counts["left_out"] == PAIRS - counts["queries"] >= len(UNLIKE_THEIR_DOCUMENT)


def test_reported_similarities_are_those_of_the_table(tmp_path):
    table, counts = mine(tmp_path)
    cosines, found = Vectors().cosines(), decoded(table)
    positives = [cosines[query, query] for query in found]
    negatives = [cosines[query, document] for query in found for document in found[query]]
    np.testing.assert_allclose(counts["mean_positive_similarity"], np.mean(positives), rtol=1e-5)
    np.testing.assert_allclose(counts["mean_negative_similarity"], np.mean(negatives), rtol=1e-5)


def test_a_copy_of_the_positive_is_never_a_negative(tmp_path):
    # Document 30 + i is document i; every allowed document is drawn, so a copy would show.
    mining = Mining(negatives=2, first_rank=1, last_rank=4, ceiling=1.0001)

    def copies(ending):
        documents = [document(i % 30, ending if i >= 30 else ()) for i in range(PAIRS)]
        table, _ = mine(tmp_path, mining, documents=documents)
        return sum(query % 30 in found for query, found in decoded(table, 30).items())

    assert copies(ending=[]) == 0
    # Control: where they differ by a token, which no vector shows, copies are drawn.
    assert copies(ending=[6]) > 0


def test_a_sample_ranks_its_own_documents_alone(tmp_path):
    embedder = Vectors()
    mining = Mining(negatives=2, first_rank=2, last_rank=12, ceiling=0.9, examples=30)
    table, counts = mine(tmp_path, mining, embedder=embedder)
    sampled = sorted(token - 10 for token in embedder.asked if token < FIRST_DOCUMENT)
    assert len(sampled) == 30 and sampled != list(range(30))
    choices, found = allowed(mining, among=sampled), decoded(table)
    assert set(found) == {query for query in choices if len(choices[query]) >= 2}
    assert all(set(found[query]) <= choices[query] for query in found)
    assert counts["queries"] + counts["left_out"] == 30


def test_rows_of_the_mined_table_are_rows_of_the_pair_table(tmp_path):
    pairs = pair_table(tmp_path / "pair")
    table, _ = mine(tmp_path)
    assert table.manifest["sources"] == ["a", "b"]
    rows = [int(text[0]) - 10 for text in table["query"]]
    assert len(set(rows)) == len(rows) == len(table["negatives"])
    for place, row in enumerate(rows):
        for feature in ("query", "document", "source"):
            np.testing.assert_array_equal(table[feature][place], pairs[feature][row])
    np.testing.assert_array_equal(table["document_hash"], token_hashes(table["document"]))


def test_documents_that_are_only_negatives_are_never_drawn_as_examples(tmp_path):
    table, counts = mine(tmp_path)
    only_negatives = {int(text[0]) - FIRST_DOCUMENT for text in table["document"]} - set(decoded(table))
    assert only_negatives & set(UNLIKE_THEIR_DOCUMENT)
    assert table.count == counts["queries"] == table.manifest["count"] - len(only_negatives)
    drawn = shuffled(np.arange(3 * table.count), table.count, seed=0)
    assert drawn.max() == table.count - 1 < table.manifest["count"] - 1
    # A batch size is limited by the examples, not by the rows.
    spec = TripletBatch(table.count, 64, negatives=2)
    spec.sequences_needed(table)
    with pytest.raises(BadInput, match=f"{table.count} examples, a batch wants {table.count + 1}"):
        dataclasses.replace(spec, batch_size=table.count + 1).sequences_needed(table)


def test_a_batch_holds_the_negatives_and_no_query_of_theirs(tmp_path):
    table, _ = mine(tmp_path)
    found, indices = decoded(table), np.arange(table.count)
    arrays, _ = triplet_batch(table, indices, sequences=16, length=64, slots=32)
    tokens = arrays["tokens"][arrays["segment_ids"] > 0]
    assert sorted(tokens[(tokens >= 10) & (tokens < FIRST_DOCUMENT)] - 10) == sorted(found)
    for place, query in enumerate(found):
        for (row, slot), document in zip(arrays["negatives"][place], found[query], strict=True):
            first = arrays["tokens"][row][arrays["chunk_ids"][row] == slot + 1][0]
            assert first == FIRST_DOCUMENT + document


def test_one_seed_gives_one_table_and_another_another(tmp_path):
    mine(tmp_path, name="one")
    mine(tmp_path, name="two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    other, _ = mine(tmp_path, Mining(3, 5, 20, 0.8, seed=2), name="other")
    assert not np.array_equal(other["negatives"], TokenTable.open(tmp_path / "one")["negatives"])


def test_fewer_documents_than_the_window_is_deep(tmp_path):
    with pytest.raises(BadInput, match=f"last_rank={PAIRS + 1} exceeds the {PAIRS} documents"):
        mine(tmp_path, Mining(last_rank=PAIRS + 1))
    with pytest.raises(BadInput, match="last_rank=20 exceeds the 19 documents"):
        mine(tmp_path, Mining(first_rank=1, last_rank=20, examples=19))
    assert not (tmp_path / "triplet").exists()


def test_no_query_with_enough_negatives(tmp_path):
    with pytest.raises(BadInput, match="no query has 16 documents in ranks 5 to 20 below 0.1"):
        mine(tmp_path, Mining(16, 5, 20, 0.1))
    assert not (tmp_path / "triplet").exists()


def test_more_negatives_than_the_window_has_ranks():
    assert Mining(16, 5, 20).negatives == 16
    with pytest.raises(BadInput, match="Mining.negatives=17; set it to at most the 16 ranks of the window"):
        Mining(17, 5, 20)


def test_only_the_rows_it_is_told_to_mine_among_take_part(tmp_path):
    among, embedder = np.arange(0, PAIRS, 2), Vectors()
    table = pair_table(tmp_path / "pair")
    mine_table(embedder, table, VOCABULARY, WINDOW, tmp_path / "even", among=among)
    choices = allowed(WINDOW, among=range(0, PAIRS, 2))
    found = decoded(TokenTable.open(tmp_path / "even", kind="triplet", vocabulary=VOCABULARY))
    assert set(found) == {query for query in choices if len(choices[query]) >= 3}
    assert all(set(negatives) <= choices[query] for query, negatives in found.items())
    assert sorted(embedder.asked) == sorted([*(10 + among), *(FIRST_DOCUMENT + among)])


def test_all_documents_of_a_query_are_its_positives(tmp_path):
    # Queries 2i and 2i + 1 are the same text: the document of each answers both.
    features = {name: pair_table(tmp_path / "plain").features[name] for name in ("document", "document_hash", "source")}
    query = Ragged.from_arrays([[10 + i - i % 2] for i in range(PAIRS)])
    mining = Mining(negatives=2, first_rank=1, last_rank=4, ceiling=2.0)

    def twins(query):
        write_table(tmp_path / "pair", "pair", VOCABULARY, {**features, "query": query}, notes={"sources": ["a", "b"]})
        counts = mine_table(Vectors(), TokenTable.open(tmp_path / "pair"), VOCABULARY, mining, tmp_path / "triplet")
        table = TokenTable.open(tmp_path / "triplet")
        documents = [int(text[0]) - FIRST_DOCUMENT for text in table["document"]]
        found = [(documents[row], documents[at]) for row in range(table.count) for at in table["negatives"][row]]
        return sum(one // 2 == other // 2 for one, other in found), counts["positives"]

    alike, refused = twins(query)
    assert alike == 0 and refused > PAIRS // 2
    # Control: where the queries differ by a token, the twin's document is drawn.
    features["document"] = Ragged.from_arrays([[FIRST_DOCUMENT + i] for i in range(PAIRS)])
    apart, fewer = twins(Ragged.from_arrays([[10 + i - i % 2, i % 2] for i in range(PAIRS)]))
    assert apart > 0 and fewer < refused


def test_copies_of_a_document_have_one_rank(tmp_path):
    # Documents i and 30 + i are one: the window of the last ranks exists only while both are counted.
    documents = [document(i % 30) for i in range(PAIRS)]
    with pytest.raises(BadInput, match="last_rank=31 exceeds the 30 documents"):
        mine(tmp_path, Mining(2, 5, 31, 2.0), documents=documents)
    table, _ = mine(tmp_path, Mining(5, 5, 30, 2.0), documents=documents)
    assert all(len(set(found)) == 5 for found in decoded(table, 30).values())


def test_documents_of_other_tables_are_ranked_too(tmp_path):
    # The pairs are the first half; the other documents stand in four tables, some twice, and cut as the pairs' are.
    def write(stage, **features):
        write_table(tmp_path / stage, KIND_OF_FOLDER[stage], VOCABULARY, features)
        return TokenTable.open(tmp_path / stage)

    def numbers(*values):
        return np.array(values, np.int32)

    query, none = Ragged.from_arrays([[10 + 35]]), numbers(0)
    copy = document(3, [6])  # as it is cut
    rows = [[*document(30), *document(31)], document(32), copy]
    pieces = Ragged.from_arrays([[len(document(30)), len(document(31))], [len(document(32))], [len(copy)]])
    tables = [
        write("diffusion", tokens=Ragged.from_arrays(rows), text_lengths=pieces),
        write(
            "contextual",
            query=query,
            document=none,
            chunk=numbers(2),
            document_hash=none,
            chunks=Ragged.from_arrays([document(i) for i in (33, 34, 35)]),
            chunks_of_document=np.array([0, 3]),
        ),
        write(
            "triplet",
            query=Ragged.from_arrays([[10 + 2], []]),
            document=Ragged.from_arrays([document(36), document(37)]),
            document_hash=numbers(7, 8),
            source=numbers(0, 0),
            negatives=numbers([1], [0]),
        ),
        write(
            "pair",
            query=Ragged.from_arrays([[9]] * 22),
            document=Ragged.from_arrays([document(i, [6] * 9)[:9] for i in range(38, 60)]),
            document_hash=np.arange(22, dtype=np.int32),
            source=np.zeros(22, np.int32),
        ),
    ]
    features = dict(pair_table(tmp_path / "all").features)
    notes = {"sources": ["a", "b"], "lengths": {"query": 1, "document": 4}}
    write_table(tmp_path / "pairs", "pair", VOCABULARY, features, notes=notes)
    pairs, among = TokenTable.open(tmp_path / "pairs"), np.arange(30)
    everything = Mining(negatives=20, first_rank=1, last_rank=60, ceiling=9.0, part_size=7)

    def mined(embedder, name, tables=tables, **arguments):
        output = tmp_path / name
        return mine_table(embedder, pairs, VOCABULARY, everything, output, documents=tables, among=among, **arguments)

    whole = Vectors()
    counts = mined(whole, "whole")
    assert counts["documents"] == PAIRS and counts["positives"] == 30 + 1  # of query 2, another table's answer too
    documents = [token for token in whole.asked if token >= FIRST_DOCUMENT]
    assert sorted(documents) == list(range(FIRST_DOCUMENT, FIRST_DOCUMENT + PAIRS))  # each once
    table = TokenTable.open(tmp_path / "whole", kind="triplet", vocabulary=VOCABULARY)
    found = decoded(table)
    assert set(itertools.chain(*found.values())) == set(range(PAIRS))
    assert max(table["document"].lengths()) == 4
    choices = allowed(everything)
    choices[2] -= {36}
    assert set(found) == {query for query in range(30) if len(choices[query]) >= 20}
    assert all(set(found[query]) <= choices[query] for query in found)
    # Rows of documents that no pair has: no query, and hashes that tell them apart.
    others = [row for row in range(table.count, len(table["query"])) if not len(table["query"][row])]
    assert len(others) == 30 and len(set(table["document_hash"][others].tolist())) == 30
    arrays, _ = triplet_batch(table, np.arange(4), sequences=32, length=64, slots=32)
    assert arrays["negatives"].shape == (4, 20, 2)
    for shard in range(3):
        mined(Vectors(), "shared", shard=(shard, 3))
    last = Vectors()
    mined(last, "shared")
    assert last.asked == [] and files_of(tmp_path / "whole") == files_of(tmp_path / "shared")
    # More parts of documents than of queries: a share may have the former alone.
    documents = Vectors()
    assert mined(documents, "idle", shard=(5, 6)) == {"parts": 0} and len(documents.asked) == PAIRS
    # Parts of other documents are not taken up.
    mined(Vectors(), "other", shard=(0, 3))
    with pytest.raises(BadInput, match="contains parts of another mining"):
        mined(Vectors(), "other", tables=tables[::-1], shard=(1, 3))


def test_the_margin_is_taken_off_the_positive(tmp_path):
    cosines = Vectors().cosines()
    table, counts = mine(tmp_path, Mining(2, 1, 60, ceiling=1.0, margin=0.4))
    found = decoded(table)
    assert all(cosines[query, document] <= cosines[query, query] - 0.4 for query in found for document in found[query])
    assert counts["above_ceiling"] > mine(tmp_path, Mining(2, 1, 60, ceiling=1.0))[1]["above_ceiling"]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_and_an_interrupted_run_give_the_same_bytes(tmp_path):
    mining, table = SHARED, pair_table(tmp_path / "pair")
    mine_table(Vectors(), table, VOCABULARY, mining, tmp_path / "whole")
    for shard in (2, 0, 1):
        counts = mine_table(Vectors(), table, VOCABULARY, mining, tmp_path / "shared", shard=(shard, 3))
        assert counts == {"parts": 3} and not (tmp_path / "shared").exists()
    last = Vectors()
    mine_table(last, table, VOCABULARY, mining, tmp_path / "shared")
    assert last.asked == []  # all was there

    class Killed(Vectors):
        def encode_tokens(self, ids):
            if len(self.asked) > PAIRS + 20:  # documents done, and some of the queries
                raise KeyboardInterrupt
            return super().encode_tokens(ids)

    with pytest.raises(KeyboardInterrupt):
        mine_table(Killed(), table, VOCABULARY, mining, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    again = Vectors()
    mine_table(again, table, VOCABULARY, mining, tmp_path / "cut")
    assert 0 < len(again.asked) < PAIRS
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "shared") == files_of(tmp_path / "cut")
    assert not list(tmp_path.glob("*.mining"))


def test_shards_that_start_together_encode_other_documents_first(tmp_path):
    table, asked = pair_table(tmp_path / "pair"), []

    class OwnShare(Vectors):
        def encode_tokens(self, ids):
            if len(self.asked) + len(ids) > PAIRS / 3 + 1:
                raise KeyboardInterrupt
            return super().encode_tokens(ids)

    for shard in range(3):
        # In folders of their own: none sees what the others are at.
        embedder = OwnShare()
        with pytest.raises(KeyboardInterrupt):
            mine_table(embedder, table, VOCABULARY, SHARED, tmp_path / f"of_{shard}", shard=(shard, 3))
        asked += embedder.asked
    assert sorted(asked) == list(range(FIRST_DOCUMENT, FIRST_DOCUMENT + PAIRS))


def test_a_shard_that_is_none_leaves_nothing(tmp_path):
    table = pair_table(tmp_path / "pair")
    for shard in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(BadInput, match="count shards from 0"):
            mine_table(Vectors(), table, VOCABULARY, SHARED, tmp_path / "shared", shard=shard)
    assert not list(tmp_path.glob("shared*"))


def test_progress_counts_to_what_is_there(tmp_path, capsys):
    table = pair_table(tmp_path / "pair")
    mine_table(Vectors(), table, VOCABULARY, SHARED, tmp_path / "shared", shard=(2, 3))
    lines = capsys.readouterr().err
    assert f"mine: encode: document {PAIRS}/{PAIRS} [" in lines and "mine: rank: query 18/18 [" in lines
    mine_table(Vectors(), table, VOCABULARY, SHARED, tmp_path / "shared")
    assert "mine: rank: query 42/42 [" in capsys.readouterr().err


def test_parts_of_other_settings_are_refused(tmp_path):
    table = pair_table(tmp_path / "pair")
    mine_table(Vectors(), table, VOCABULARY, WINDOW, tmp_path / "triplet", shard=(0, 1))
    other = dataclasses.replace(WINDOW, seed=WINDOW.seed + 1)
    with pytest.raises(BadInput, match=r"triplet\.mining contains parts of another mining"):
        mine_table(Vectors(), table, VOCABULARY, other, tmp_path / "triplet")


def test_a_block_of_documents_at_a_time_ranks_as_all_at_once(monkeypatch):
    generator = np.random.default_rng(0)
    # Signs in 16 dimensions: cosines are exact, and many tie.
    documents, queries = (generator.choice([-1, 1], (count, 16)).astype(np.int8) for count in (50, 6))
    whole = mining_search.exact_search(documents)(queries, 12)
    monkeypatch.setattr(mining_search, "_DOCUMENTS_PER_BLOCK", 9)
    for one, other in zip(mining_search.exact_search(documents)(queries, 12), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_approximate_search_finds_what_the_exact_one_does(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 16))
    documents = np.rint(40 * (centres.repeat(40, axis=0) + 0.3 * generator.normal(size=(1600, 16))))
    documents = documents.clip(-127, 127).astype(np.int8)
    queries = documents[::50]
    exact = mining_search.exact_search(documents)(queries, 20)
    whole = mining_search.approximate_search(documents, probes=1600)(queries, 20)
    assert os.environ["OMP_WAIT_POLICY"] == "passive"  # faiss leaves the cores to others
    np.testing.assert_allclose(whole[0], exact[0], atol=1e-5)

    def recall(probes):
        found = mining_search.approximate_search(documents, probes)(queries, 20)[1]
        return np.mean([len(set(one) & set(other)) / 20 for one, other in zip(found, exact[1], strict=True)])

    assert recall(1) < recall(16) and recall(16) > 0.95


def test_the_report_shows_counts_and_samples(tmp_path):
    _, counts = mine(tmp_path, dataclasses.replace(WINDOW, samples=4))
    text, page = ((tmp_path / "triplet" / f"report.{kind}").read_text() for kind in ("txt", "html"))
    assert f"queries: {counts['queries']}" in text and text.count("\nquery ") == 4
    assert text.count("\nnegative ") == 4 * WINDOW.negatives
    assert "<h1>Hard negatives</h1>" in page and page.count("<h3>") == 4
