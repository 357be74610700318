"""Converts the tokenizer of a GGUF file to a `tokenizer.json` that gives the ids of the original tokenizer.

A GGUF file has the tokens and merges of a byte-level BPE, and only the name of the rules that split text into words
before. `_SPLITTERS` says what a name stands for in the published `tokenizer.json` files.
"""

import json
import pathlib
from typing import Any

from pplx_jax.core.errors import BadInput

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # types of tokens; an unused one only fills the table
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = _BYTES | {"use_regex": True}  # with GPT-2's rules
_SPLIT = {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
# Name of the rules -> normalizer and pre-tokenizer.
_SPLITTERS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "gpt-2": (None, _WORDS),
    "smollm": (None, {"type": "Sequence", "pretokenizers": [_DIGITS, _WORDS]}),
    "qwen2": ({"type": "NFC"}, {"type": "Sequence", "pretokenizers": [_SPLIT, _BYTES | {"use_regex": False}]}),
}
# Role -> the keys that declare its token, the best first.
_ROLES = {
    "mask": ("mask_token_id", "fim_pad_token_id"),
    "separator": ("seperator_token_id",),  # the format spells it so
    "pad": ("padding_token_id", "eos_token_id"),
}


def tokenizer_json(path: pathlib.Path, fields: dict[str, Any]) -> bytes:
    """Returns the content of a `tokenizer.json`.

    Args:
      path: of the file, for messages.
      fields: the metadata of the file.

    Raises:
      BadInput: the tokenizer is of another kind, its rules are not in `_SPLITTERS`, or its lists are damaged.
    """
    kind, rules = fields.get(f"{_PREFIX}model"), fields.get(f"{_PREFIX}pre")
    if kind != "gpt2":
        raise BadInput(
            f"{path}: the tokenizer is of the kind {kind!r}, and only byte-level BPE ('gpt2') is read from GGUF files; "
            "import the Hugging Face folder of the model"
        )
    if rules not in _SPLITTERS:
        raise BadInput(
            f"{path}: the tokenizer splits words by the rules {rules!r}, and only {', '.join(_SPLITTERS)} are "
            "implemented; import the Hugging Face folder of the model"
        )
    lists = [fields.get(f"{_PREFIX}{name}") or [] for name in ("tokens", "token_type", "merges")]
    tokens, types, merges = lists
    if not tokens or not merges or len(types) != len(tokens):
        raise BadInput(f"{path}: the tokenizer has no tokens, no token types or no merges; download the file again")
    used = {token: place for place, token in enumerate(tokens) if types[place] != _UNUSED}
    pairs = [merge.split(" ") for merge in merges]
    if len(used) != len(tokens) - types.count(_UNUSED) or any(len(pair) != 2 for pair in pairs):
        raise BadInput(f"{path}: the tokenizer has a token twice or a damaged merge; download the file again")
    normalizer, splitter = _SPLITTERS[rules]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": place, "content": token, **flags, "special": types[place] == _CONTROL}
        for token, place in used.items()
        if types[place] in (_CONTROL, _USER_DEFINED)
    ]
    options = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    switches = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": _BYTES | {"use_regex": True},
        "model": {"type": "BPE", **options, **switches, "vocab": used, "merges": pairs},
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def token_names(fields: dict[str, Any]) -> dict[str, str]:
    """Returns role -> token name, as far as the file declares them."""
    tokens, names = fields.get(f"{_PREFIX}tokens") or (), {}
    for role, keys in _ROLES.items():
        declared = [fields[_PREFIX + key] for key in keys if _PREFIX + key in fields]
        if declared and declared[0] < len(tokens):
            names[role] = tokens[declared[0]]
    return names
