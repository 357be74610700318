"""Cutting texts: nothing lost, nothing too long, and cut where a reader would."""

import numpy as np
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.chunking import chunk


def words(texts):
    return np.array([len(text.split()) for text in texts])


def characters(texts):
    return np.array([len(text.encode()) for text in texts])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Tokens of a SentencePiece vocabulary, which joins and splits across cuts as it likes."""
    vocabulary = tiny.tiny_vocabulary(tmp_path_factory.mktemp("chunking"))
    return lambda texts: np.array([len(ids) for ids in vocabulary.encode_batch(list(texts))])


@given(
    st.text(alphabet=st.sampled_from("aZé字。.!? \n\t\r\u0301\u200d🏽👩_filereadtable"), max_size=200),
    st.integers(1, 20),
)
def test_any_text_is_whole_and_within_the_limit(pieces, text, tokens):
    chunks = chunk(text, tokens, count_tokens=pieces)
    assert "".join(chunks) == text
    assert "" not in chunks
    for part, size in zip(chunks, pieces(chunks), strict=True):
        # A character with its marks and joiners may have more of its own.
        assert size <= tokens or len(part.strip("\u0301\u200d🏽")) <= 2 or "\u200d" in part


@given(st.text(max_size=300), st.integers(4, 40))
def test_bytes_never_exceed_what_a_character_needs(text, tokens):
    chunks = chunk(text, tokens, count_tokens=characters)
    assert "".join(chunks) == text
    assert chunk(text, max(len(text.encode()), 1), count_tokens=characters) == ([text] if text else [])


SENTENCES = {
    "english": ["He paid $3.50 to Dr. Smith, i.e. too much. ", 'She said "No!" ', "J. K. Doe left? ", "The end."],
    "german": ["Das kostet z. B. 5 Euro. ", "Wirklich? ", "Ja…"],
    "russian": ["Это первое предложение. ", "А это второе! ", "Третье?"],
    "chinese": ["今天天气很好。", "我们去公园吧！", "「好的。」", "走。"],
    "japanese": ["今日は晴れです。", "行きますか？", "はい。"],
    "hindi": ["यह पहला वाक्य है। ", "यह दूसरा है।"],
    "arabic": ["كيف حالك؟ ", "أنا بخير. ", "شكرا"],
    "urdu": ["یہ پہلا جملہ ہے۔ ", "یہ دوسرا ہے۔"],
    "armenian": ["Սա առաջինն է։ ", "Սա երկրորդն է։"],
    "amharic": ["ይህ አንድ ነው። ", "ይህ ሁለት ነው።"],
    "list": ["1. First item.\n", "2. Second item.\n", "3. Third item."],
    "paragraphs": ["A title\n\n", "A body without a stop\n\n\n", "Another"],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_stay_whole(language):
    sentences = SENTENCES[language]
    longest = max(characters(sentences))
    cuts = {sum(map(len, sentences[:place])) for place in range(len(sentences) + 1)}
    for tokens in (longest, longest + 7, 2 * longest):
        chunks = chunk("".join(sentences), tokens, count_tokens=characters)
        ends = np.cumsum([len(part) for part in chunks])
        assert set(ends.tolist()) <= cuts, chunks
    assert len(chunk("".join(sentences), longest, count_tokens=characters)) > 1


def test_chunks_are_as_full_as_sentences_allow():
    text = "One two three. Four five. Six seven eight nine. Ten."
    assert chunk(text, 5, count_tokens=words) == ["One two three. Four five. ", "Six seven eight nine. Ten."]


def test_code_is_cut_at_lines_and_keeps_its_indentation():
    code = "".join(f"    value_{n} = compute({n})\n" for n in range(30))
    chunks = chunk(f"def f():\n{code}", 120, count_tokens=characters)
    assert len(chunks) > 5
    assert all(part.endswith("\n") for part in chunks)
    assert all(part.startswith(("def", "    value")) for part in chunks)


def test_a_comments_full_stop_leaves_the_next_lines_indentation_with_it():
    code = "    # Read it.\n    read()\n"
    assert chunk(code, 3, count_tokens=words) == ["    # Read it.\n", "    read()\n"]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_inside():
    assert chunk("a b c d e f g", 3, count_tokens=words) == ["a b c ", "d e f ", "g"]
    parts = chunk("x" * 100, 30, count_tokens=characters)
    assert "".join(parts) == "x" * 100 and max(map(len, parts)) <= 30


def test_a_character_is_never_torn_from_its_accents():
    family = "👩\u200d👩\u200d👧"
    for text in ("e\u0301" * 20, family * 5, "👍🏽" * 9):
        for part in chunk(text, 8, count_tokens=characters):
            assert part[0] not in "\u0301\u200d🏽" and not part.endswith("\u200d")


@pytest.mark.parametrize(
    "character",
    [
        "\U0001f1e9\U0001f1ea",
        "\u0915\u094d\u0937",
        "\u0ba8\u0bbf",
        "\u1112\u1161\u11ab",
        "\u0e01\u0e49",
        "\U0001f44d\U0001f3fd",
    ],
    ids=["flag", "devanagari conjunct", "tamil vowel", "hangul", "thai tone", "skin tone"],
)
def test_a_user_perceived_character_is_never_cut(character):
    for count in (9, 10, 31):
        for part in chunk(character * count, 25, count_tokens=characters):
            assert part == character * (len(part) // len(character))


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over it. " * 3000,
        *("quick brown fox " * 6000, "x" * 100_000, "." * 100_000, '."' * 50_000, " " * 100_000, "\n" * 100_000),
        *("\U0001f1e9\U0001f1ea" * 30_000, "a" + "\u0301" * 100_000, "\u5b57" * 50_000, "a" + " " * 100_000 + "b"),
    ],
    ids=lambda text: ascii(text[:9]),
)
def test_every_long_text_is_tokenized_few_times(pieces, text):
    """Work that grows with the square of the length would take minutes here."""
    counted = []

    def count(texts):
        counted.append(sum(map(len, texts)))
        return pieces(texts)

    assert "".join(chunk(text, 256, count_tokens=count)) == text
    assert sum(counted) < 4 * len(text)


def test_the_empty_text_has_no_chunks_and_a_limit_is_at_least_one():
    assert chunk("", 5, count_tokens=words) == []
    with pytest.raises(BadInput, match="tokens=0"):
        chunk("a", 0, count_tokens=words)


def test_a_long_text_takes_few_counts():
    counted = []

    def count(texts):
        counted.append(sum(map(len, texts)))
        return words(texts)

    text = "The quick brown fox jumps over it. " * 5000
    assert max(words(chunk(text, 256, count_tokens=count))) <= 256
    assert sum(counted) < 5 * len(text)
