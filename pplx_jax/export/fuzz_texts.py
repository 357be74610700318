"""Random short texts on which two implementations of a tokenizer are most likely to differ."""

import numpy as np

_ALPHABETS = (
    "aeEB \u00e9\u00ea\u0301\u0302\u0323\u0327\u1100\u1161\u11a8\uac00\u200d\ufe0f\U0001f44d",
    "ab AB_.\n\t\r\u00a0\u3000\u2028\u200b\x00\x07\x80\ufeff",
    "ab \u2581\u0120\u010a\u2047\ufffd",
    "0123456789.,-+#=*/\\<>|'\"(){}",
    "\u0130\u00df\u03a3\u03c2\ufb01\u01c4\u2460\u00bd\u2026\u212b\u017f\u1e9e",
    "\u0915\u093c\u0958\u09c7\u09be\u0e01\u0e33\u0628\u064e\u05d0\u05b7\u5317\u4eac\u3042\u30ac\uff76\uff9e",
)
_NAMES = ("<mask>", "<sep>", "<pad>", "<unk>", "<0x41>", "<|endoftext|>", "readFile", "\u2581\u2581", "  ", "it's", "é")


def fuzz_texts(count: int, seed: int = 0) -> list[str]:
    """Returns texts of up to eight pieces: characters of one alphabet, names of symbols, and any characters.

    White space and U+2581, which SentencePiece uses for spaces, are often the first or the last character.
    """
    random = np.random.default_rng(seed)

    def piece() -> str:
        kind = int(random.integers(len(_ALPHABETS) + 3))
        if kind < len(_ALPHABETS):
            return "".join(random.choice(list(_ALPHABETS[kind]), random.integers(1, 6)))
        if kind == len(_ALPHABETS):
            return _NAMES[random.integers(len(_NAMES))]
        highest = 0x3000 if kind == len(_ALPHABETS) + 1 else 0x20000
        codes = random.integers(1, highest, random.integers(1, 5))
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)

    ends = ("", "", "", "", " ", "\u2581", "\u2581 ", " \u2581", "\n")
    return [
        ends[random.integers(len(ends))]
        + "".join(piece() for _ in range(random.integers(0, 9)))
        + ends[random.integers(len(ends))]
        for _ in range(count)
    ]
