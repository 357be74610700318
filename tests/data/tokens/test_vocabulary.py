"""The vocabulary: what its normaliser makes equal, what its symbols keep apart, and that training repeats."""

import pickle
import string

import numpy as np
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.normalization import normalization_rules
from pplx_jax.data.tokens.sentencepiece_vocabulary import MASK, PAD, SEPARATOR, UNKNOWN
from pplx_jax.data.tokens.train_vocabulary import MAX_LINE_BYTES, train_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary

SIZE = 600


def made_up_texts(count: int, seed: int = 0) -> list[str]:
    """Lines of words from a made-up language, and names in both Python styles."""
    generator = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfglmnprst" for b in "aeiou"]
    words = ["".join(generator.choice(syllables, generator.integers(2, 4))) for _ in range(300)]
    texts = []
    for _ in range(count):
        line = [str(word) for word in generator.choice(words, 10)]
        texts.append(f"{' '.join(line)}\n    {line[0]}_{line[1]} = {line[2].title()}{line[3].title()}({line[4]})")
    return texts


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    return train_vocabulary(made_up_texts(500), tmp_path_factory.mktemp("vocabulary") / "v.model", SIZE)


def test_symbols_come_first_and_size_is_as_asked(vocabulary):
    symbols = (vocabulary.pad_id, vocabulary.unknown_id, vocabulary.mask_id, vocabulary.separator_id)
    assert symbols == (0, 1, 2, 3)
    assert vocabulary.size == SIZE


@pytest.mark.parametrize("symbol", [PAD, UNKNOWN, MASK, SEPARATOR])
def test_symbols_are_never_encoded_from_text(vocabulary, symbol):
    for text in (symbol, f"one {symbol} two", symbol.upper(), f"{symbol}{symbol}", f"a{symbol}b"):
        assert not {0, 1, 2, 3} & set(vocabulary.encode(text))
        assert vocabulary.decode(vocabulary.encode(text)) == text.lower()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("read_file", "read file"),
        ("readFile", "read file"),
        ("ReadFile", "Read File"),
        ("__read_file__", " read  file "),
        ("getHTTPResponse", "get httpresponse"),  # where an acronym ends cannot be seen from two letters
        ("a\tb\r\n\n  c", "a b c"),
        ("\ufb01le", "file"),  # a ligature
        ("\uff26\uff29\uff2c\uff25", "file"),  # full-width capitals
        ("Stra\u00dfe", "strasse"),
        ("caf\u00e9", "cafe\u0301"),
        ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),  # Hangul syllables and their letters
        ("a\x07b", "ab"),
    ],
)
def test_normaliser_makes_equal(vocabulary, left, right):
    assert vocabulary.encode(left) == vocabulary.encode(right)


def test_normaliser_keeps_apart(vocabulary):
    texts = ["cafe", "café", "read file", "readfile", "read-file", "read.file"]
    assert len({tuple(vocabulary.encode(text)) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["", "plain words", "日本語 \U0001f600 ž", "f(x) -> {y: [1, 23]}  # %~^"])
def test_round_trip_gives_the_normalised_text(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == " ".join(text.split())
    assert all(0 <= token < vocabulary.size for token in ids)


def test_every_ascii_character_has_a_piece(vocabulary):
    """An exported tokenizer needs them: byte pieces would score differently there."""
    for character in string.ascii_letters + string.digits + string.punctuation.replace("_", ""):
        assert len(vocabulary.encode(character)) <= 2, character  # the word boundary and itself


def test_digits_stand_alone(vocabulary):
    assert len(vocabulary.encode("2026")) >= 4


def test_batch_equals_one_by_one_and_decode_takes_arrays(vocabulary):
    texts = ["", *made_up_texts(20, seed=1), "日本"]
    batch = vocabulary.encode_batch(texts)
    assert batch == [vocabulary.encode(text) for text in texts]
    assert vocabulary.encode_batch([]) == []
    assert vocabulary.decode(np.array(batch[1])) == vocabulary.decode(batch[1])


def test_symbols_decode_to_nothing(vocabulary):
    ids = [0, *vocabulary.encode("words"), 2, 3, 0]
    assert vocabulary.decode(ids) == "words"


def test_training_repeats_bit_for_bit_and_holds_no_path(vocabulary, tmp_path):
    again = train_vocabulary(iter(made_up_texts(500)), tmp_path / "elsewhere" / "w.model", SIZE)
    assert again.model == vocabulary.model
    assert again.fingerprint == vocabulary.fingerprint
    assert b".tsv" not in again.model and str(tmp_path).encode() not in again.model
    assert list((tmp_path / "elsewhere").iterdir()) == [again.path]


def test_sample_depends_on_the_seed_and_is_bounded(tmp_path):
    texts = made_up_texts(1500)
    one, same, other = (
        train_vocabulary(texts, tmp_path / f"{index}.model", SIZE, sample_bytes=20_000, seed=seed)
        for index, seed in enumerate((0, 0, 1))
    )
    assert one.model == same.model != other.model


def test_long_lines_are_trained_on(tmp_path):
    """The trainer drops lines beyond its limit without a word."""
    word = "quixotic"
    line = " ".join([word] * (3 * MAX_LINE_BYTES // len(word)))
    vocabulary = train_vocabulary([*made_up_texts(300), line], tmp_path / "v.model", 450)
    assert len(vocabulary.encode(word)) <= 2


def test_load_from_folder_save_and_pickle(vocabulary, tmp_path):
    path = vocabulary.save(tmp_path / "model")
    assert path == tmp_path / "model" / "vocabulary.model"
    for copy in (
        load_vocabulary(tmp_path / "model"),
        load_vocabulary(path),
        pickle.loads(pickle.dumps(vocabulary)),
    ):
        assert copy.fingerprint == vocabulary.fingerprint
        assert copy.encode("some words") == vocabulary.encode("some words")


def test_scores_add_exactly(vocabulary):
    """Multiples of 2^-8 have exact float32 sums, so ties fall alike in every implementation."""
    processor = vocabulary._processor
    scores = np.array([processor.get_score(token) for token in range(vocabulary.size)])
    assert np.array_equal(scores * 256, np.round(scores * 256))


def test_rules_are_idempotent():
    """What a rule gives, no rule changes: encoding normalised text again gives the same ids."""
    rules = normalization_rules()
    assert not {source: to for source, to in rules.items() if any(character in rules for character in to)}


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x00" * 100])
def test_missing_or_corrupt_file(tmp_path, content):
    path = tmp_path / "broken.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="broken.model") as error:
        load_vocabulary(path)
    assert "\n" not in str(error.value)


def test_folder_without_vocabulary(tmp_path):
    with pytest.raises(BadInput, match="vocabulary.model"):
        load_vocabulary(tmp_path)


def test_foreign_model_without_our_symbols(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(made_up_texts(200)),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=200,
        minloglevel=2,
    )
    with pytest.raises(BadInput, match="<pad>"):
        load_vocabulary(tmp_path / "foreign.model")


@pytest.mark.parametrize(("texts", "size"), [(["too little text"], 4000), (made_up_texts(5), 20), ([], 600)])
def test_too_few_texts_or_too_small_a_size(tmp_path, texts, size):
    with pytest.raises(BadInput, match=f"no vocabulary of {size} pieces") as error:
        train_vocabulary(texts, tmp_path / "v.model", size)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_length_gives_a_lower_bound_of_the_tokens(vocabulary):
    longest = max((vocabulary.decode([token]) for token in range(vocabulary.size)), key=len)
    hard = ("\u1fbe\u0308\u0301", "\ufdfa", "\u200b\u00ad", "e\u0301", "readFile", "\u2581")
    blank = ["", " " * 9999, "\n\t\x01\x02" * 999, "_" * 999]
    texts = [*made_up_texts(50, seed=1), " ".join([longest] * 100), *(piece * 99 for piece in hard), *blank]
    bounds = [vocabulary.least_tokens(text) for text in texts]
    assert all(bound <= len(vocabulary.encode(text)) for bound, text in zip(bounds, texts, strict=True))
    assert bounds[-len(blank) :] == [0] * len(blank)  # white space of any length has no token
    assert vocabulary.least_tokens("read " * 10_000) > 1000


def test_unknown_characters_give_no_bound(tmp_path):
    """Without byte pieces, a run of unknown characters of any length is one token."""
    import sentencepiece

    symbols = {"pad_id": 0, "pad_piece": PAD, "unk_id": 1, "unk_piece": UNKNOWN, "bos_id": -1, "eos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(made_up_texts(50)),
        model_prefix=str(tmp_path / "plain"),
        vocab_size=120,
        control_symbols=[MASK, SEPARATOR],
        minloglevel=2,
        **symbols,
    )
    plain = load_vocabulary(tmp_path / "plain.model")
    assert len(plain.encode("\u5317" * 1000)) < 3
    assert plain.least_tokens("\u5317" * 1000) == 0
