"""An exported `tokenizer.json` of a pretrained model: the same ids in `AutoTokenizer`, and parity of the export."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.bpe_tokenizer import CONTENT, SPECIAL, write_tokenizer

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.tokenizer import save_tokenizer
from pplx_jax.models.parameters import initial_params

TEXTS = [
    "",
    " ",
    "\n\t \r\n",
    "def read_file(path: str) -> bytes:\n    return pathlib.Path(path).read_bytes()\n",
    "cafe\u0301 \u5317\u4eac \U0001f44d\U0001f3fd \u212b",
    *SPECIAL,
    *CONTENT,
    " ".join(SPECIAL + CONTENT),
    "".join(f"a{name}" for name in SPECIAL + CONTENT),
    "<|endoftext|><|endoftext|>\n<|fim_pad|>  <think>x</think>",
]


@pytest.fixture
def pretrained(tmp_path):
    return TokenizerVocabulary.read(write_tokenizer(tmp_path))


def auto_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def test_same_ids(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    save_tokenizer(pretrained, tmp_path / "out", 64)
    tokenizer = auto_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == pretrained.encode(text), text
    assert tokenizer(TEXTS)["input_ids"] == pretrained.encode_batch(TEXTS)
    assert tokenizer.pad_token_id == pretrained.pad_id
    assert tokenizer.mask_token_id == pretrained.mask_id
    assert tokenizer.sep_token_id == pretrained.separator_id


def test_named_tokens_are_spelled_out_and_content_is_not(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    save_tokenizer(pretrained, tmp_path / "out", 64)
    tokenizer = auto_tokenizer(tmp_path / "out")
    named = {pretrained.mask_id, pretrained.separator_id}
    assert not named & set(tokenizer(" ".join(SPECIAL + CONTENT))["input_ids"])
    assert len(tokenizer("<think>")["input_ids"]) == 1


def test_without_special_tokens_tokenizers_alone_spells_them(pretrained, tmp_path):
    """As text-embeddings-inference reads the file."""
    from tokenizers import Tokenizer

    def alone(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return [tokenizer.encode(text).ids for text in TEXTS]

    ids = pretrained.encode_batch(TEXTS)
    for name, spell in (("special", False), ("spelled", True)):
        (tmp_path / name).mkdir()
        save_tokenizer(pretrained, tmp_path / name, 64, spell_special_tokens=spell)
        assert (alone(tmp_path / name) == ids) == spell
    tokenizer = auto_tokenizer(tmp_path / "spelled")
    assert tokenizer(TEXTS)["input_ids"] == ids
    special = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.sep_token_id)
    assert special == (pretrained.pad_id, pretrained.mask_id, pretrained.separator_id)
    named = {"mask_token": pretrained.mask, "separator_token": pretrained.separator, "pad_token": pretrained.pad}
    again = TokenizerVocabulary.read(tmp_path / "spelled", **named)
    assert again.encode_batch(TEXTS) == ids and again.size == pretrained.size


def test_saved_again_it_gives_the_same_ids(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    save_tokenizer(pretrained, tmp_path / "out", 64)
    auto_tokenizer(tmp_path / "out").save_pretrained(tmp_path / "again")
    tokenizer = auto_tokenizer(tmp_path / "again")
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [pretrained.encode(text) for text in TEXTS]


def test_what_the_tokenizer_would_append_is_not(pretrained, tmp_path):
    """As Qwen3-Embedding's, which ends every text in a token."""
    content = json.loads(pretrained.model)
    end = {"id": "<|endoftext|>", "ids": [pretrained.separator_id], "tokens": ["<|endoftext|>"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": end},
    }
    appending = dataclasses.replace(pretrained, model=json.dumps(content).encode())
    (tmp_path / "out").mkdir()
    save_tokenizer(appending, tmp_path / "out", 64)
    tokenizer = auto_tokenizer(tmp_path / "out")
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [pretrained.encode(text) for text in TEXTS]


def test_parity_of_an_export_with_it(pretrained, config, tmp_path):
    config = dataclasses.replace(config, vocab_size=pretrained.size, layers=1, max_length=256)
    params = jax.tree.map(np.asarray, initial_params(config, 0))
    save_model(tmp_path / "model", config, pretrained, params, stage="contextual", kind="context_v1")
    report = export_hf(tmp_path / "model", tmp_path / "export")
    assert report["parity"]["max_abs_diff"] <= 1e-4
    assert report["parity"]["int8_equal_share"] > 0.999
