import json
import pathlib

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies
from sentencepiece import sentencepiece_model_pb2

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.sentencepiece_vocabulary import SentencePieceVocabulary
from pplx_jax.export.export_parity import _require_same_tokens
from pplx_jax.export.fuzz_texts import fuzz_texts
from pplx_jax.export.tokenizer import convert_tokenizer, save_tokenizer

TEXTS = [
    "",
    " ",
    "\n\t \r\n",
    "  leading and trailing  ",
    "a\r\nb\tc\u00a0d\u3000e\u2028f",
    "def read_file(path: str) -> bytes:\n    return pathlib.Path(path).read_bytes()\n",
    "readFile HTTPServer aBcD x_Y __init__ CONSTANT_NAME",
    "<mask> <sep> <pad> <unk> <0x41> <0x0A> a<mask>b <MASK> < mask >",
    "\u0120 \u2581 \u2581\u2581word",
    "caf\u00e9 cafe\u0301 E\u0301 aE\u0301 e\u0301\u0301 \u00ea\u0323 e\u0302\u0323 e\u0323\u0302",
    "x\u0301\u0323 \u0301 a\u0327\u0301",
    "\u0130\u0323 stra\u00dfe \u03a3\u03b1\u03c2 \ufb01 \u01c4 \u2460 \u00bd \u2026 \u212b",
    "\uac01 \u1100\u1161\u11a8 \uac00\u11a8 \u1161\u11a8 \u1100\u1161\u1161",
    "\u0915\u093c \u0958 \u09c7\u09be \u0e01\u0e33 \u0600a",
    "\u5317\u4eac\u5927\u5b66 \u6771\u4eac \u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea",
    "a\x00b\x01c\x7fd\x80",
    "\u2581",
    "\u2581\u2581",
    "\u2581word",
    " \u2581 word",
    "\u2581\u2581word \u2581",
    "word\u2581",
    "word \u2581 \u2581\u2581 ",
    "\u2581<mask>\u2581",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 20,
    "0123456789" * 30,
]

# Every character alike would rarely give marks after letters, or the names of control symbols.
PIECES = strategies.one_of(
    strategies.text(max_size=8),
    strategies.text(alphabet="aeEB \u00e9\u00ea\u0301\u0302\u0323\u0327\u1100\u1161\u11a8\uac00\u200d\ufe0f\U0001f44d"),
    strategies.sampled_from(["<mask>", "<sep>", "<pad>", "<unk>", "<0x41>", "readFile", "_", " ", "\n"]),
)


@pytest.fixture(scope="module")
def exact(vocabulary) -> SentencePieceVocabulary:
    """The vocabulary with scores that add without rounding, so that ties fall alike."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.model)
    for piece in proto.pieces:
        piece.score = round(piece.score * 256) / 256
    return SentencePieceVocabulary(vocabulary.path, proto.SerializeToString())


@pytest.fixture(scope="module")
def tokenizer(exact):
    return convert_tokenizer(exact)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_same_ids(text, tokenizer, exact):
    assert tokenizer.encode(text).ids == exact.encode(text)


@hypothesis.settings(max_examples=300)
@hypothesis.given(strategies.lists(PIECES, max_size=8).map("".join))
def test_same_ids_of_any_text(tokenizer, exact, text):
    assert tokenizer.encode(text).ids == exact.encode(text)


def test_same_ids_of_thousands_of_texts(tokenizer, exact):
    texts = fuzz_texts(6000, seed=1)
    assert len(set(texts)) > 5000 and any(text.startswith("\u2581") for text in texts)
    for text, found, expected in zip(texts, tokenizer.encode_batch(texts), exact.encode_batch(texts), strict=True):
        assert found.ids == expected, text


def test_parity_fails_where_a_rare_text_differs(exports, vocabulary):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    def parity(**changes):
        content = json.loads((exports["v1"][0] / "tokenizer.json").read_text())
        content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][: changes.get("kept")]
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        _require_same_tokens(PreTrainedTokenizerFast(tokenizer_object=backend), vocabulary, pathlib.Path("out"))

    parity()
    for kept in (-1, -2):  # without the rules for U+2581
        with pytest.raises(RuntimeError, match="out: tokens of '.*\u2581.*' are "):
            parity(kept=kept)


def test_ties_fall_alike(tokenizer, exact):
    for mark in "-=#<*. '":
        for count in range(1, 60):
            text = f"x {mark * count} y"
            assert tokenizer.encode(text).ids == exact.encode(text)


def test_this_repository_encodes_alike(tokenizer, exact, request):
    for path in sorted((request.config.rootpath / "pplx_jax").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert tokenizer.encode(text).ids == exact.encode(text), path


def test_decoding(tokenizer, exact):
    for text in ("read file line by line", "caf\u00e9 \U0001f600"):
        assert tokenizer.decode(exact.encode(text)) == exact.decode(exact.encode(text)) == text


def test_auto_tokenizer(exports, vocabulary):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exports["v1"][0], trust_remote_code=True)
    assert tokenizer.pad_token_id == vocabulary.pad_id
    assert tokenizer.mask_token_id == vocabulary.mask_id
    assert tokenizer.sep_token_id == vocabulary.separator_id
    assert tokenizer.unk_token_id == vocabulary.unknown_id
    assert len(tokenizer) == vocabulary.size
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == vocabulary.encode(text)
    ids = [vocabulary.mask_id, *vocabulary.encode("a b"), vocabulary.pad_id]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a b"


def test_the_file_alone_never_gives_control_symbols(tmp_path, vocabulary):
    import tokenizers

    save_tokenizer(vocabulary, tmp_path, 512)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "<mask> <sep> <pad> <unk> <0x41>"
    assert tokenizer.encode(text).ids == vocabulary.encode(text)
    assert not tokenizer.get_added_tokens_decoder()


def test_other_models_are_refused(tmp_path):
    path = tmp_path / "bpe.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words to learn from"] * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=40,
            bos_id=-1,
            eos_id=-1,
            pad_id=0,
            pad_piece="<pad>",
            unk_id=1,
            control_symbols=["<mask>", "<sep>"],
            minloglevel=2,
        )
    with pytest.raises(BadInput, match="model_type unigram, byte_fallback, single-character pieces for"):
        convert_tokenizer(SentencePieceVocabulary.read(path))
