"""The vocabulary of a tokenizer.json: Qwen's kind of byte-level BPE, special tokens that text never gives."""

import json
import pickle
import shutil

import numpy as np
import pytest
from helpers.bpe_tokenizer import write_tokenizer

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.sentencepiece_vocabulary import SentencePieceVocabulary
from pplx_jax.data.tokens.tokenizer_vocabulary import NAMES, TokenizerVocabulary
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")
TEXTS = [
    "",
    " ",
    "read a file line by line",
    "def read(path):\n    return open(path).read()\n\n\n",
    "Caf\u00e9 cafe\u0301 \u5317\u4eac \u041c\u0438\u0440 \U0001f44d\U0001f3fd \u0627\u0644\u0633\u0644\u0627\u0645",
    "12345 don't WE'LL tabs\tand\r\nreturns",
    "<think>a thought</think> <tool_call>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(folder) -> Vocabulary:
    return load_vocabulary(folder)


def edited(folder, tmp_path, edit):
    """A copy of the folder whose tokenizer.json went through `edit`."""
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return copy


def test_tokens_are_found_by_name(folder, vocabulary):
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert vocabulary.mask_id == plain.token_to_id("<|fim_pad|>")
    assert vocabulary.separator_id == vocabulary.pad_id == plain.token_to_id("<|endoftext|>")
    assert vocabulary.size == plain.get_vocab_size() > vocabulary.mask_id


def test_ids_are_those_of_transformers(folder, vocabulary):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert vocabulary.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert vocabulary.encode_batch(TEXTS) == [vocabulary.encode(text) for text in TEXTS]
    assert vocabulary.encode_batch([]) == []


@pytest.mark.parametrize("name", SPECIAL)
def test_the_name_of_a_special_token_is_text(folder, vocabulary, name):
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert plain.token_to_id(name) in plain.encode(f"a{name}b").ids  # what transformers does by default
    special = {plain.token_to_id(token) for token in SPECIAL}
    for text in (name, f"a{name}b", f" {name}\n{name}{name} "):
        assert not special & set(vocabulary.encode(text))
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_decoding(vocabulary):
    for text in TEXTS[:4]:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    ids = [vocabulary.mask_id, *vocabulary.encode("words"), vocabulary.separator_id, vocabulary.pad_id]
    assert vocabulary.decode(np.array(ids)) == "words"


def test_saved_and_pickled_it_is_the_same(folder, vocabulary, tmp_path):
    path = vocabulary.save(tmp_path / "model")
    assert path.read_bytes() == (folder / "tokenizer.json").read_bytes()
    for copy in (
        load_vocabulary(tmp_path / "model"),
        load_vocabulary(path),
        pickle.loads(pickle.dumps(vocabulary)),
    ):
        assert copy.fingerprint == vocabulary.fingerprint
        assert [copy.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]


def test_chosen_names_are_kept(folder, vocabulary, tmp_path):
    chosen = TokenizerVocabulary.read(folder, mask_token="<|im_start|>", separator_token="<|im_end|>")
    assert chosen.fingerprint != vocabulary.fingerprint
    chosen.save(tmp_path)
    again = load_vocabulary(tmp_path)
    assert (again.mask_id, again.separator_id) == (chosen.mask_id, chosen.separator_id)
    assert again.pad_id == vocabulary.pad_id and again.mask_id != vocabulary.mask_id
    assert json.loads((tmp_path / NAMES).read_text()) == {
        "mask": "<|im_start|>",
        "separator": "<|im_end|>",
        "pad": "<|endoftext|>",
    }


def test_names_that_the_publisher_declares(folder, tmp_path):
    copy = tmp_path / "declared"
    shutil.copytree(folder, copy)
    config = {"mask_token": {"content": "<|im_start|>"}, "sep_token": "<|im_end|>", "pad_token": None}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_vocabulary(copy)
    assert isinstance(found, TokenizerVocabulary)
    assert (found.mask, found.separator, found.pad) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def test_nothing_is_cut_padded_or_appended(folder, vocabulary, tmp_path):
    end = vocabulary.separator_id

    def edit(content):
        content["truncation"] = {
            "max_length": 3,
            "stride": 0,
            "strategy": "LongestFirst",
            "direction": "Right",
        }
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "e", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"e": {"id": "e", "ids": [end], "tokens": ["<|endoftext|>"]}},
        }

    from tokenizers import Tokenizer

    changed = load_vocabulary(edited(folder, tmp_path, edit))
    assert isinstance(changed, TokenizerVocabulary)
    text = TEXTS[3]
    assert Tokenizer.from_str(changed.model.decode()).encode(text).ids != vocabulary.encode(text)
    assert changed.encode(text) == vocabulary.encode(text)
    assert Tokenizer.from_str(changed.plain_model.decode()).encode(text).ids == vocabulary.encode(text)


def test_a_file_that_does_none_of_it_is_handed_on_unchanged(folder):
    vocabulary = TokenizerVocabulary.read(folder)
    assert vocabulary.plain_model == (folder / "tokenizer.json").read_bytes()


def test_a_folder_with_both_is_one_of_ours(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "both")
    train_vocabulary(["some words to read"] * 9, tmp_path / "both" / "vocabulary.model", 328)
    assert isinstance(load_vocabulary(tmp_path / "both"), SentencePieceVocabulary)


def test_seqio_gives_the_same_ids(vocabulary):
    import tensorflow as tf

    seqio_vocabulary = tasks.seqio_vocabulary(vocabulary)
    ours = [vocabulary.encode(text) for text in TEXTS]
    assert [list(seqio_vocabulary.encode(text)) for text in TEXTS] == ours
    assert seqio_vocabulary.encode_tf(tf.constant(TEXTS)).to_list() == ours
    assert seqio_vocabulary.vocab_size == vocabulary.size
    assert seqio_vocabulary.pad_id == vocabulary.pad_id
    assert seqio_vocabulary.decode(ours[2]) == TEXTS[2]
    assert seqio_vocabulary == tasks.seqio_vocabulary(vocabulary)


def test_token_files_are_those_of_the_vocabulary(vocabulary, tmp_path):
    from pplx_jax.data.sources.source import Source
    from pplx_jax.data.tokens.lengths import Lengths
    from pplx_jax.data.tokens.token_table import TokenTable

    corpus = tmp_path / "text.jsonl"
    lines = [{"text": f"{text} <|endoftext|> words <|fim_pad|>", "source": "s"} for text in TEXTS]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source, lengths = Source("text", "text", str(corpus)), Lengths(text=4096, query=1, document=1, chunk=1, chunks=1)
    tasks.tokenize_source(source, vocabulary, tmp_path / "tokens", lengths, min_tokens=1)
    table = TokenTable.open(tmp_path / "tokens", vocabulary=vocabulary)
    assert table.pad_id == vocabulary.pad_id
    expected = [token for line in lines for token in vocabulary.encode(line["text"])]
    assert np.asarray(table["tokens"].values).tolist() == expected
    assert not {vocabulary.mask_id, vocabulary.separator_id} & set(expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_token": "<mask>"}, "no token '<mask>' for the mask"),
        ({"separator_token": "[SEP]"}, r"no token '\[SEP\]' for the separator"),
        ({"separator_token": "<|fim_pad|>"}, "mask and separator are both"),
        ({"mask_token": "e"}, "the text 'e' gives the token of that name"),
    ],
)
def test_names_that_cannot_serve(folder, options, message):
    with pytest.raises(BadInput, match=message):
        TokenizerVocabulary.read(folder, **options)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": null}'])
def test_damaged_files(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadInput, match="is not a tokenizer") as error:
        load_vocabulary(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_names(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / NAMES).write_text('{"mask": 3}')
    with pytest.raises(BadInput, match="does not name mask, separator, pad"):
        load_vocabulary(copy)
    (copy / NAMES).write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        load_vocabulary(copy)
    with pytest.raises(BadInput, match="cannot read"):
        load_vocabulary(tmp_path / "none.json")


def test_a_length_gives_a_lower_bound_of_the_tokens(vocabulary):
    texts = [*TEXTS, "\u1fbe\u0308\u0301" * 999, "\u212b\u0301" * 999, "e\u0301" * 999, " " * 999, "read file " * 99]
    texts += ["</tool_call>" * 99, "<think>" * 99]
    for text in texts:
        assert vocabulary.least_tokens(text) <= len(vocabulary.encode(text))
    longest = len("<|fim_prefix|>")
    assert vocabulary.least_tokens("read file " * 99) == -(-990 // longest)
    assert vocabulary.least_tokens("\u5317" * 100) == -(-300 // 4 // longest)  # composing shortens a text


def test_bytes_without_a_token_do_not_count(folder, tmp_path):
    """As in SmolLM2's vocabulary."""
    lacking = load_vocabulary(edited(folder, tmp_path, lambda content: content["model"]["vocab"].pop("!")))
    assert lacking.encode("!" * 999) == []
    assert [lacking.least_tokens(text) for text in ("!" * 999, "?" * 140, "\u5317" * 999)] == [0, 10, 0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        lambda content: content.update(pre_tokenizer={"type": "WhitespaceSplit"}),
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda content: next(token for token in content["added_tokens"] if not token["special"]).update(lstrip=True),
    ],
    ids=["stripped", "white space dropped", "matches dropped", "a token takes spaces"],
)
def test_a_tokenizer_that_may_drop_bytes_gives_no_bound(folder, tmp_path, edit):
    assert load_vocabulary(edited(folder, tmp_path, edit)).least_tokens("read " * 1000) == 0
