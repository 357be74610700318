"""Hard negatives against a ranking by brute force, and the table that the triplet stage then reads."""

import itertools
import types

import numpy as np
import pytest

from pplx_jax.contrastive.mining import Mining, mine_table
from pplx_jax.data.features import rows_needed, triplet_batch
from pplx_jax.data.loader import Loader
from pplx_jax.data.token_files import Ragged, TokenTable, write_table
from pplx_jax.errors import BadInput

PAIRS, WIDTH = 60, 8
FIRST_DOCUMENT = 100  # token ids: query i is [10 + i], document i starts with 100 + i
UNLIKE_THEIR_DOCUMENT = (4, 17, 33)
VOCABULARY = types.SimpleNamespace(
    fingerprint="ab" * 32, size=500, pad_id=0, mask_id=2, separator_id=3, path="stub.model"
)
WINDOW = Mining(negatives=3, first_rank=5, last_rank=20, ceiling=0.8, seed=1)


class Vectors:
    """An embedder that looks a text's vector up by its first token, and remembers what it was asked."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.documents = generator.normal(size=(PAIRS, WIDTH)).astype(np.float32)
        self.queries = (0.8 * self.documents + 0.5 * generator.normal(size=(PAIRS, WIDTH))).astype(np.float32)
        self.queries[list(UNLIKE_THEIR_DOCUMENT)] *= -1
        self.vocabulary = VOCABULARY
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


def pair_table(folder, hashes=None) -> TokenTable:
    features = {
        "query": Ragged.from_arrays([[10 + i] for i in range(PAIRS)]),
        "document": Ragged.from_arrays([[FIRST_DOCUMENT + i] + [5] * (i % 4) for i in range(PAIRS)]),
        "document_hash": np.arange(PAIRS, dtype=np.int32) if hashes is None else hashes,
        "source": (np.arange(PAIRS) % 2).astype(np.int32),
    }
    write_table(folder, "pair", VOCABULARY, features, notes={"sources": ["a", "b"]})
    return TokenTable.open(folder)


def mine(tmp_path, mining=WINDOW, *, name="triplet", embedder=None, hashes=None):
    """The mined table and the counts."""
    table = pair_table(tmp_path / "pair", hashes)
    counts = mine_table(embedder or Vectors(), table, VOCABULARY, mining, tmp_path / name)
    return TokenTable.open(tmp_path / name, stage="triplet", vocabulary=VOCABULARY), counts


def decoded(table: TokenTable) -> dict[int, list[int]]:
    """Query -> its negatives, both as rows of the pair table, read off the tokens of the mined one."""
    documents = [int(text[0]) - FIRST_DOCUMENT for text in table["document"]]
    found = {}
    for row in range(table.count):
        query = int(table["query"][row][0]) - 10
        assert documents[row] == query  # its positive stands in its own row
        found[query] = [documents[place] for place in table["negatives"][row]]
    return found


def allowed(mining: Mining, hashes=None, among=range(PAIRS)) -> dict[int, set[int]]:
    """Query -> documents that may be its negatives: by sorting all of them."""
    cosines, result = Vectors().cosines(), {}
    hashes = np.arange(PAIRS) if hashes is None else hashes
    for query in among:
        ranked = sorted(among, key=lambda document: -cosines[query, document])
        positive = cosines[query, query]
        ceiling = positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
        result[query] = {
            document
            for document in ranked[mining.first_rank - 1 : mining.last_rank]
            if cosines[query, document] <= ceiling and hashes[document] != hashes[query]
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
    # Document 30 + i says the same as document i; every allowed document is drawn, so a copy would show.
    embedder = Vectors()
    embedder.documents[30:] = embedder.documents[:30]
    hashes = (np.arange(PAIRS) % 30).astype(np.int32)
    mining = Mining(negatives=2, first_rank=1, last_rank=4, ceiling=1.0001)

    def copies(hashes):
        table, _ = mine(tmp_path, mining, embedder=embedder, hashes=hashes)
        return sum(document % 30 == query % 30 for query, found in decoded(table).items() for document in found)

    assert copies(hashes) == 0
    # Control: where the hashes do not say so, copies are drawn.
    assert copies(np.arange(PAIRS, dtype=np.int32)) > 0


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
        for feature in ("query", "document", "document_hash", "source"):
            np.testing.assert_array_equal(table[feature][place], pairs[feature][row])


def test_documents_that_are_only_negatives_are_never_drawn_as_examples(tmp_path):
    table, counts = mine(tmp_path)
    only_negatives = {int(text[0]) - FIRST_DOCUMENT for text in table["document"]} - set(decoded(table))
    assert only_negatives & set(UNLIKE_THEIR_DOCUMENT)
    assert table.count == counts["queries"] == table.manifest["count"] - len(only_negatives)
    with Loader(lambda indices: indices, count=table.count, batch_size=8, seed=0) as loader:
        drawn = np.concatenate([indices for indices, _ in itertools.islice(loader, 3 * table.count // 8)])
    assert drawn.max() == table.count - 1 < table.manifest["count"] - 1
    # A batch size is held to the examples, not to the rows.
    rows_needed(table, "triplet", table.count, 64)
    with pytest.raises(BadInput, match=f"{table.count} examples, a batch wants {table.count + 1}"):
        rows_needed(table, "triplet", table.count + 1, 64)


def test_a_batch_holds_the_negatives_and_no_query_of_theirs(tmp_path):
    table, _ = mine(tmp_path)
    found, indices = decoded(table), np.arange(table.count)
    arrays, _ = triplet_batch(table, indices, rows=16, length=64, slots=32)
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
    with pytest.raises(BadInput, match=f"ranks to {PAIRS + 1} among {PAIRS} documents"):
        mine(tmp_path, Mining(last_rank=PAIRS + 1))
    with pytest.raises(BadInput, match="ranks to 20 among 19 documents"):
        mine(tmp_path, Mining(last_rank=20, examples=19))
    assert not (tmp_path / "triplet").exists()


def test_no_query_with_enough_negatives(tmp_path):
    with pytest.raises(BadInput, match="no query has 17 documents of rank 5 to 20 under 0.8"):
        mine(tmp_path, Mining(17, 5, 20, 0.8))  # the window holds 16
    assert not (tmp_path / "triplet").exists()


def test_only_the_rows_it_is_told_to_mine_among_take_part(tmp_path):
    among, embedder = np.arange(0, PAIRS, 2), Vectors()
    table = pair_table(tmp_path / "pair")
    mine_table(embedder, table, VOCABULARY, WINDOW, tmp_path / "even", among=among)
    choices = allowed(WINDOW, among=range(0, PAIRS, 2))
    found = decoded(TokenTable.open(tmp_path / "even", stage="triplet", vocabulary=VOCABULARY))
    assert set(found) == {query for query in choices if len(choices[query]) >= 3}
    assert all(set(negatives) <= choices[query] for query, negatives in found.items())
    assert sorted(embedder.asked) == sorted([*(10 + among), *(FIRST_DOCUMENT + among)])
