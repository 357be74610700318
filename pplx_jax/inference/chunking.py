"""Splits a text into chunks for late chunking, at sentence ends if possible, without losing a character.

Split points are tried in this order, each only for pieces that are still too long: ends of sentences and paragraphs,
line ends (code, lists), spaces, and between any two user-perceived characters (extended grapheme clusters of Unicode).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import regex

from pplx_jax.core.errors import BadInput

CountTokens = Callable[[Sequence[str]], Sequence[int] | np.ndarray]

# A full stop after one of these, or after a single letter (an initial, "e.g."), does not end a sentence.
_ABBREVIATIONS = frozenset(
    "al approx bzw ca cf co corp dr ed eq etc ex fig figs hr inc jr ltd mr mrs ms nr op pp prof ref resp sec "
    "sr st tab usw vol vs".split()
)
_CLOSING = "\"'”’»›）)\\]」』】》〉"
_MARKS = ".!?…؟۔।॥։።፧፨။។៕"
_AFTER = r"(?:[^\S\r\n]*(?:\r?\n)+|[^\S\r\n]+)"  # indentation belongs to the next line
# Marks followed by white space (Latin, Cyrillic, Greek, Arabic, Urdu, Indic, Armenian, Ethiopic, Burmese, Khmer),
# marks of scripts without white space (Chinese, Japanese, Tibetan), and blank lines.
_SENTENCE_END = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]+[{_CLOSING}]*{_AFTER}|[。！？｡．⁇⁈⁉།༎]+[{_CLOSING}]*{_AFTER}?|\r?\n(?:[^\S\n]*\r?\n)+"
)
_LAST_WORD = re.compile(r"(?:^|[^\w.])([\w.]*)\.$")
_LINE_END = re.compile(r"\r\n?|[\n\u2028\u2029]")
_SPACE = re.compile(r"\s+")
# Extended grapheme clusters. Flags come first, because \X looks back over all flags before each flag.
_CHARACTER = regex.compile(r"[\U0001F1E6-\U0001F1FF]{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*|\X")
_LONGEST_ABBREVIATION = 16
_MARGIN = 1.1  # for parts with more tokens than others of their length


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
    fits, free = first + 1, tokens - sizes[first]
    joined = 1.0  # tokens of the joined pieces for each token of their sum
    while True:
        stop, total = fits, 0
        while stop < len(pieces) and (total + sizes[stop]) * joined <= free:
            total += sizes[stop]
            stop += 1
        if stop == fits:
            if joined == 1:
                return fits
            joined = 1.0
            continue
        size = int(count_tokens(["".join(pieces[first:stop])])[0])
        if size <= tokens:
            fits, free = stop, tokens - size
            joined = min(1.0, _MARGIN * size / max(sum(sizes[first:stop]), 1))
        elif joined < 1:
            joined = 1.0
        else:
            while stop > fits + 1 and size > tokens:
                stop -= 1
                size = int(count_tokens(["".join(pieces[first:stop])])[0])
            return stop if size <= tokens else fits


def _pieces(text: str, tokens: int, count_tokens: CountTokens) -> tuple[list[str], list[int]]:
    """Returns the largest pieces within the limit, and their numbers of tokens."""
    pieces, sizes = [text] if text else [], [tokens + 1] if text else []
    for cut in (_sentences, _lines, _words):
        parts = [cut(piece) if size > tokens else [piece] for piece, size in zip(pieces, sizes, strict=True)]
        pieces, sizes = _counted(parts, sizes, count_tokens)
    while True:
        parts = [
            _equal_parts(piece, math.ceil(size / tokens * _MARGIN)) if size > tokens else [piece]
            for piece, size in zip(pieces, sizes, strict=True)
        ]
        if len(parts) == sum(map(len, parts)):
            return pieces, sizes
        pieces, sizes = _counted(parts, sizes, count_tokens)


def _counted(parts: list[list[str]], sizes: list[int], count_tokens: CountTokens) -> tuple[list[str], list[int]]:
    """Returns the parts of all pieces and their numbers of tokens. A piece of one part keeps its number."""
    distinct = list(dict.fromkeys(part for some in parts if len(some) > 1 for part in some))
    counts = dict(zip(distinct, map(int, count_tokens(distinct)), strict=True)) if distinct else {}
    shorter, their_sizes = [], []
    for some, size in zip(parts, sizes, strict=True):
        shorter += some
        their_sizes += [counts[part] for part in some] if len(some) > 1 else [size]
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


def _equal_parts(text: str, count: int) -> list[str]:
    """Returns up to `count` parts of similar length, cut between user-perceived characters."""
    places = [len(text) * number // count for number in range(1, count)]
    if text.isascii():  # only a line end has two characters
        return _split_at(text, (place + (text[place - 1 : place + 1] == "\r\n") for place in places))
    ends = np.array([0, *(found.end() for found in _CHARACTER.finditer(text))])
    nearest = np.searchsorted(ends[:-1] + np.diff(ends) / 2, places, side="right")
    return _split_at(text, (int(end) for end in ends[nearest]))
