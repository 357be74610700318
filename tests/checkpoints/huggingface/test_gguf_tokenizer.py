"""The tokenizer of a GGUF file gives the ids of the tokenizer that it was made from."""

import json
import pathlib
import sysconfig

import pytest
from helpers.bpe_tokenizer import PATTERN
from helpers.gguf_model import tokenizer_fields
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from pplx_jax.checkpoints.huggingface.gguf_tokenizer import token_names, tokenizer_json
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary

STDLIB = pathlib.Path(sysconfig.get_path("stdlib"))
TEXTS = [
    (STDLIB / "textwrap.py").read_text(encoding="utf-8"),
    *(STDLIB / "textwrap.py").read_text(encoding="utf-8").splitlines(keepends=True),
    "Numbers 7 42 1234567890 3.14159 1,000 \u0664\u0665 \u00bd x\u00b2 \u2167 0x1F",
    "  two   spaces\t\ttabs \n\n\n lines \r\n and \u00a0 others\u3000. ",
    "don't we'll I'M you're HTTPServer snake_case camelCase",
    "Caf\u00e9, de\u0301ja\u0300, \u01c6, \ufb01, \u5317\u4eac, \u041c\u0438\u0440, \U0001f44d\U0001f3fd",
    "names <|endoftext|> <think> <|fim_pad|>",
    "",
    " ",
]
SPLITTERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.fixture(scope="module", params=SPLITTERS)
def original(request):
    """(rules, tokenizer). It is trained with GPT-2's rules, so that it has merges that other rules never use."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITTERS["gpt-2"]()
    tokenizer.decoder = decoders.ByteLevel()
    if request.param == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    code = (STDLIB / "argparse.py").read_text(encoding="utf-8")
    tokenizer.train_from_iterator([code, *TEXTS, *("the year 2024\r\n\r\n  and 1999" for _ in range(50))], trainer)
    tokenizer.pre_tokenizer = SPLITTERS[request.param]()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|endoftext|>", "<|fim_pad|>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return request.param, tokenizer


def vocabulary(fields):
    path = pathlib.Path("model.gguf")
    return TokenizerVocabulary.of(path, tokenizer_json(path, fields), token_names(fields))


def test_ids_are_those_of_the_original(original):
    rules, tokenizer = original
    content = tokenizer.to_str()
    fields = tokenizer_fields(json.loads(content), rules)
    ours, theirs = vocabulary(fields), TokenizerVocabulary.of(pathlib.Path("tokenizer.json"), content.encode(), {})
    assert ours.size == theirs.size
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.encode("<think>") == [tokenizer.token_to_id("<think>")]
    for other in SPLITTERS.keys() - {rules}:  # other rules show
        wrong = vocabulary(fields | {"tokenizer.ggml.pre": other})
        assert any(wrong.encode(text) != theirs.encode(text) for text in TEXTS), other


def test_declared_tokens(original):
    rules, tokenizer = original
    fields = tokenizer_fields(json.loads(tokenizer.to_str()), rules)
    place = tokenizer.token_to_id("<|endoftext|>")
    found = vocabulary(fields | {"tokenizer.ggml.eos_token_id": place})
    assert (found.mask, found.separator, found.pad) == ("<|fim_pad|>", "<|endoftext|>", "<|endoftext|>")
    declared = {"tokenizer.ggml.mask_token_id": place, "tokenizer.ggml.padding_token_id": place}
    assert token_names(fields | declared) == {"mask": "<|endoftext|>", "pad": "<|endoftext|>"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer.ggml.model": "llama"}, "the tokenizer is of the kind 'llama'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "splits words by the rules 'llama-bpe', and only gpt-2, smollm, qwen2"),
        ({"tokenizer.ggml.token_type": []}, "no tokens, no token types or no merges"),
        ({"tokenizer.ggml.merges": ["a"]}, "a token twice or a damaged merge"),
    ],
)
def test_what_is_not_ours_is_refused(original, changes, words):
    rules, tokenizer = original
    fields = tokenizer_fields(json.loads(tokenizer.to_str()), rules) | changes
    with pytest.raises(BadInput, match=words) as caught:
        vocabulary(fields)
    assert "\n" not in str(caught.value)
