"""A lower bound of the tokens of a text from its length, for byte-level BPE: each token stands for a few bytes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

_SPLITS = ("ByteLevel", "Digits", "Punctuation", "Split")  # pre-tokenizers that keep every byte
_NFC_SHRINKS = 4  # no text has more than 3.5 times the bytes of its NFC: U+1FBE U+0308 U+0301 is U+0390


@dataclasses.dataclass(frozen=True)
class ByteBound:
    """What a tokenizer does with the bytes of a text.

    Attributes:
        longest: bytes of its longest token; 0 if nothing is known.
        dropped: the bytes that it has no token for, which byte-level BPE drops (SmolLM2's lacks 21, such as 0x04).
        composes: whether it brings texts into NFC first.
    """

    longest: int = 0
    dropped: bytes = b""
    composes: bool = False

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "ByteBound":
        """Reads a parsed `tokenizer.json`. The bound of another kind of tokenizer is 0."""
        model, pre_tokenizer = content["model"], content.get("pre_tokenizer") or {"type": "none"}
        splits = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
        normalizer, added = content.get("normalizer"), content.get("added_tokens") or []
        keeps_bytes = (
            model.get("type") == "BPE"
            and (normalizer is None or normalizer["type"] == "NFC")
            and all(part["type"] in _SPLITS and part.get("behavior") != "Removed" for part in splits)
            and any(part["type"] == "ByteLevel" for part in splits)
            and not any((token["lstrip"] or token["rstrip"]) and not token["special"] for token in added)
        )
        if not keeps_bytes:
            return cls()
        longest = max(*map(len, model["vocab"]), *(len(token["content"].encode()) for token in added))
        characters = _characters()
        dropped = bytes(byte for byte in range(256) if characters[byte] not in model["vocab"])
        return cls(longest, dropped, normalizer is not None)

    def least_tokens(self, text: str) -> int:
        """Returns a number of tokens that a text has at least."""
        if not self.longest:
            return 0
        kept = len(text.encode().translate(None, self.dropped))
        if self.composes and not text.isascii():
            kept = 0 if self.dropped else kept // _NFC_SHRINKS
        return -(-kept // self.longest)


def _characters() -> list[str]:
    """Returns the characters that byte-level BPE writes for bytes: printable ones for themselves, others from 256."""
    from tokenizers import pre_tokenizers

    printable = {ord(character) for character in pre_tokenizers.ByteLevel.alphabet()}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
