"""Splits a text into chunks for late chunking, at sentence ends if possible, without losing a character.

Split points are tried in this order, each only for pieces that are still too long: ends of sentences and paragraphs,
line ends (code, lists), spaces, and between any two user-perceived characters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput

CountTokens = Callable[[Sequence[str]], Sequence[int] | np.ndarray]

# A full stop after one of these, or after a single letter (an initial, "e.g."), does not end a sentence.
_ABBREVIATIONS = frozenset(
    "al approx bzw ca cf co corp dr ed eq etc ex fig figs hr inc jr ltd mr mrs ms nr op pp prof ref resp sec "
    "sr st tab usw vol vs".split()
)
_CLOSING = "\"'”’»›）)\\]」』】》〉"
_AFTER = r"(?:[^\S\r\n]*(?:\r?\n)+|[^\S\r\n]+)"  # indentation belongs to the next line
# Marks followed by white space (Latin, Cyrillic, Greek, Arabic, Urdu, Indic, Armenian, Ethiopic, Burmese, Khmer),
# marks of scripts without white space (Chinese, Japanese, Tibetan), and blank lines.
_SENTENCE_END = re.compile(
    rf"[.!?…؟۔।॥։።፧፨။។៕]+[{_CLOSING}]*{_AFTER}|[。！？｡．⁇⁈⁉།༎]+[{_CLOSING}]*{_AFTER}?|\r?\n(?:[^\S\n]*\r?\n)+"
)
_LAST_WORD = re.compile(r"(?:^|[^\w.])([\w.]*)\.$")
_LINE_END = re.compile(r"\r\n?|[\n\u2028\u2029]")
_SPACE = re.compile(r"\s+")
_JOINER = "\u200d"
_LONGEST_ABBREVIATION = 16


def chunk(text: str, tokens: int = 256, *, count_tokens: CountTokens) -> list[str]:
    """Splits a text into chunks of at most `tokens` tokens. Each chunk takes as many sentences as fit.

    Args:
        text: any text. Its chunks concatenated are the text, including white space.
        tokens: maximum tokens of a chunk. Only a single character with more tokens exceeds it.
        count_tokens: returns the number of tokens of each text in a list, such as `Embedder.count_tokens`.

    Returns:
        The chunks in order; none for an empty text.

    Raises:
        BadInput: `tokens` is less than 1.
    """
    if tokens < 1:
        raise BadInput(f"chunk: tokens={tokens}; give at least 1")
    pieces, sizes = _pieces(text, tokens, count_tokens)
    chunks = []
    first = 0
    while first < len(pieces):
        stop = _stop(pieces, sizes, first, tokens, count_tokens)
        chunks.append("".join(pieces[first:stop]))
        first = stop
    return chunks


def _stop(pieces: list[str], sizes: list[int], first: int, tokens: int, count_tokens: CountTokens) -> int:
    """Returns the end of the chunk that starts at piece `first`. Tokens of joined pieces can differ from their sum."""
    fits, stop, free = first + 1, first + 1, tokens - sizes[first]
    while True:
        while stop < len(pieces) and sizes[stop] <= free:
            free -= sizes[stop]
            stop += 1
        if stop == fits:
            return fits
        size = int(count_tokens(["".join(pieces[first:stop])])[0])
        if size <= tokens:
            fits, free = stop, tokens - size
        else:
            while stop > fits + 1 and size > tokens:
                stop -= 1
                size = int(count_tokens(["".join(pieces[first:stop])])[0])
            return stop if size <= tokens else fits


def _pieces(text: str, tokens: int, count_tokens: CountTokens) -> tuple[list[str], list[int]]:
    """Returns the largest pieces within the limit, and their numbers of tokens."""
    pieces, sizes = [text] if text else [], [tokens + 1] if text else []
    for cut in (_sentences, _lines, _words):
        pieces, sizes = _cut_long(pieces, sizes, tokens, cut, count_tokens)
    while any(size > tokens and len(_halves(piece)) > 1 for piece, size in zip(pieces, sizes, strict=True)):
        pieces, sizes = _cut_long(pieces, sizes, tokens, _halves, count_tokens)
    return pieces, sizes


def _cut_long(
    pieces: list[str],
    sizes: list[int],
    tokens: int,
    cut: Callable[[str], Sequence[str]],
    count_tokens: CountTokens,
) -> tuple[list[str], list[int]]:
    parts = [cut(piece) if size > tokens else [piece] for piece, size in zip(pieces, sizes, strict=True)]
    counted = iter(count_tokens([part for some in parts if len(some) > 1 for part in some]))
    shorter, their_sizes = [], []
    for some, size in zip(parts, sizes, strict=True):
        shorter += some
        their_sizes += [int(next(counted)) for _ in some] if len(some) > 1 else [size]
    return shorter, their_sizes


def _split_at(text: str, ends: Iterator[int]) -> list[str]:
    bounds = sorted({0, *ends, len(text)})
    return [text[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


def _sentences(text: str) -> list[str]:
    return _split_at(text, (mark.end() for mark in _SENTENCE_END.finditer(text) if _ends_sentence(text, mark)))


def _ends_sentence(text: str, mark: re.Match[str]) -> bool:
    """Returns whether a mark ends a sentence, and not an abbreviation or an item number."""
    if mark.group().rstrip() != "." or "\n\n" in mark.group():
        return True
    if text[mark.end() : mark.end() + 1].islower():
        return False
    before = _LAST_WORD.search(text[max(mark.start() - _LONGEST_ABBREVIATION, 0) : mark.start() + 1])
    word = before.group(1) if before else ""
    initial = len(word.rpartition(".")[2]) == 1 and word[-1].isalpha()
    line = text[max(mark.start() - _LONGEST_ABBREVIATION, 0) : mark.start()].rpartition("\n")[2]
    numbered = word.isdigit() and line.strip() == word
    return not (initial or word.lower() in _ABBREVIATIONS or numbered)


def _lines(text: str) -> list[str]:
    return _split_at(text, (mark.end() for mark in _LINE_END.finditer(text)))


def _words(text: str) -> list[str]:
    return _split_at(text, (mark.end() for mark in _SPACE.finditer(text)))


def _halves(text: str) -> list[str]:
    """Returns two parts of similar length, split between user-perceived characters; one part if that is impossible."""
    middle = len(text) // 2
    for distance in range(middle + 1):
        for place in (middle + distance, middle - distance):
            if 0 < place < len(text) and not _joined(text[place - 1], text[place]):
                return [text[:place], text[place:]]
    return [text]


def _joined(before: str, after: str) -> bool:
    return (
        unicodedata.category(after).startswith("M")  # accents, vowel signs, variation selectors
        or _JOINER in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        or before + after == "\r\n"
    )
