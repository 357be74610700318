"""Evaluation text in training text: what is found, what is not, and that it is refused."""

import pickle
import tracemalloc

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.overlap import Overlap, texts_within, words_of

PASSAGE = " ".join(f"word{number}" for number in range(30))
EVALUATION = [PASSAGE, "How do I open a file?", "東京は日本の首都であり、世界でも最大級の都市圏をもつ。"]


@pytest.mark.parametrize(
    "text",
    [
        PASSAGE,
        "how DO i open -- a file",  # case and punctuation
        "before. " + " ".join(f"word{number}" for number in range(7, 23)) + " after",  # 16 words of a passage
        "また、東京は日本の首都であり世界でも最大級の",
    ],
)
def test_found(text):
    assert Overlap(EVALUATION).of(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "How do I open a door?",
        "How do I open a file? Like this.",  # a short text is found whole, or not at all
        " ".join(f"word{number}" for number in range(7, 22)),  # 15 words
        " ".join(f"word{29 - number}" for number in range(30)),  # the same words, turned around
        "東京は首都。",
    ],
)
def test_not_found(text):
    assert not Overlap(EVALUATION).of(text)


def test_runs_that_many_texts_share_are_no_sign():
    letters = [f"{PASSAGE} signed by person{number} of town{number}" for number in range(12)]
    assert Overlap(letters[:10]).of("x " + PASSAGE)
    assert not Overlap(letters).of("x " + PASSAGE)
    assert Overlap(letters).of(letters[3])  # whole texts always are


def test_a_character_is_a_word_where_none_are_spaced():
    assert words_of("Aは日本") == ["a", "は", "日", "本"]
    assert words_of("Größe_2 नमस्ते") == words_of("größe 2 नमस्ते")


def test_a_stored_test_finds_the_same_and_opens_no_pickle():
    overlap = Overlap(EVALUATION, words=12)
    again = Overlap.from_bytes(overlap.to_bytes())
    assert again.fingerprint == overlap.fingerprint
    texts = [*EVALUATION, " ".join(f"word{number}" for number in range(7, 19)), "How do I open a door?", ""]
    assert [again.of(text) for text in texts] == [overlap.of(text) for text in texts] == [True] * 4 + [False] * 2
    with pytest.raises(ValueError, match="pickle"):
        Overlap.from_bytes(pickle.dumps(overlap))


def test_a_row_that_overlaps_is_refused_with_its_place():
    overlap = Overlap(EVALUATION)
    assert overlap.refuse([("a:1", ["fine"]), ("a:2", ["also", "fine"])]) == 3
    with pytest.raises(BadInput, match=r"pairs, line 7: evaluation text in training: 'How do I open"):
        overlap.refuse([("pairs, line 7", ["fine", "How do I open a file"])])


def test_every_text_of_a_row_is_looked_at():
    row = {"id": "d", "source": "s", "chunks": ["a", "b"], "queries": [{"text": "q", "chunk": 1}]}
    assert list(texts_within(row)) == ["a", "b", "q"]
    assert list(texts_within({"query": "q", "document": "d", "source": "s"})) == ["q", "d"]


def test_texts_are_not_held():
    overlap = Overlap(EVALUATION)
    tracemalloc.start()
    try:
        for number in range(500):
            overlap.of(f"{number} " + "of a page " * 1000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000  # the texts are 5 MB
