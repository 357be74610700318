"""How the trained vocabulary normalises text: one table of rewrite rules, longest match first.

NFKC with case folding for every character and its canonical decomposition; white space and `_` to a space;
control characters to nothing; a space between an ASCII lower-case letter and an upper-case one. So
`read_file`, `readFile` and "Read file" are the same text. `CAMEL_CASE` is the last rule as a regular
expression, for tokenizers that normalise a character at a time.
"""

import functools
import string
import sys
import unicodedata

CAMEL_CASE = "(?<=[a-z])(?=[A-Z])"  # where the normaliser puts a space


def normalization_rules() -> dict[str, str]:
    """The rewrite rules of the normaliser: what is replaced (one character or more) -> by what."""
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
    """The rules as SentencePiece's trainer reads them: code points, a tab, code points."""

    def codes(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    return "".join(f"{codes(source)}\t{codes(to)}\n" for source, to in sorted(normalization_rules().items()))


def _fold(text: str) -> str:
    """NFKC_Casefold: folding can undo NFKC and NFKC can give new capitals, hence twice."""
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text
