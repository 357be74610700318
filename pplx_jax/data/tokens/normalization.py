"""The normalisation of the trained vocabulary: a table of rewrite rules, applied longest match first.

- every character and its canonical decomposition: NFKC with case folding;
- white space and `_`: a space;
- control characters: removed;
- a space is inserted between an ASCII lower-case letter and an upper-case letter.

So `read_file`, `readFile` and "Read file" are the same text. `CAMEL_CASE` is the last rule as a regular expression, for
tokenizers that normalise one character at a time.
"""

import functools
import string
import sys
import unicodedata

CAMEL_CASE = "(?<=[a-z])(?=[A-Z])"  # where a space is inserted


def normalization_rules() -> dict[str, str]:
    """Returns the rewrite rules: one character or more -> the replacement."""
    rules = {}
    for code in range(1, sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cs":
            continue
        if character.isspace():
            target = " "
        elif category == "Cc":
            target = ""
        else:
            target = _fold(character).replace("_", " ")
        for source in (character, unicodedata.normalize("NFD", character)):
            if source != target:
                rules[source] = target
    for lower in string.ascii_lowercase:
        for upper in string.ascii_uppercase:
            rules[lower + upper] = f"{lower} {upper.lower()}"
    return rules


@functools.cache
def rules_table() -> str:
    """Returns the rules in the format of SentencePiece's trainer: code points, a tab, code points."""

    def codes(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    return "".join(f"{codes(source)}\t{codes(to)}\n" for source, to in sorted(normalization_rules().items()))


def _fold(text: str) -> str:
    """Applies NFKC_Casefold. Twice, because folding can undo NFKC, and NFKC can give new capitals."""
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text
