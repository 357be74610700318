"""Evaluation text in training text: found by whole texts and by runs of words they share, and refused."""

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput

WORDS = 16  # a run so long is seldom shared by chance; GPT-3 (arXiv 2005.14165, appendix C) took 8 to 13
_REMEMBERED = 100_000  # texts
COMMON = 10  # a run in more evaluation texts than this is a form letter, not a text
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, kana, Han: a character is a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Letters and digits between white space and punctuation, case folded; one character in unspaced scripts."""
    return _WORD.findall(text.casefold())


class Overlap:
    """What a set of evaluation texts gives away.

    A text overlaps where all its words are those of an evaluation text in their order, or where it shares a run of
    `words` words with one. Runs that more than `common` evaluation texts share do not count.
    """

    def __init__(self, evaluation: Iterable[str], words: int = WORDS, common: int = COMMON):
        self._words = words
        self._known: dict[str, bool] = {}  # a passage stands in many rows
        hashes = [_hashes(text) for text in dict.fromkeys(evaluation)]
        self._whole = {one.tobytes() for one in hashes if len(one)}
        runs = [np.unique(_runs(one, words)) for one in hashes]
        found, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_counts=True)
        self._runs = found[counts <= common]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what it knows of the evaluation texts, in hexadecimal."""
        known = hashlib.sha256(self._runs.tobytes())
        for one in sorted(self._whole):
            known.update(hashlib.sha256(one).digest())
        return known.hexdigest()

    def of(self, text: str) -> bool:
        """Whether a training text overlaps with the evaluation texts."""
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = self._look(text)
        return self._known[text]

    def _look(self, text: str) -> bool:
        hashes = _hashes(text)
        if hashes.tobytes() in self._whole:
            return True
        runs = _runs(hashes, self._words)
        if not len(runs) or not len(self._runs):
            return False
        places = np.searchsorted(self._runs, runs).clip(max=len(self._runs) - 1)
        return bool(np.any(self._runs[places] == runs))

    def refuse(self, rows: Iterable[tuple[str, Sequence[str]]]) -> int:
        """Checks texts that are about to be trained on, and returns how many there were.

        Args:
            rows: where a row stands, and its texts.

        Raises:
            BadInput: one overlaps; the line says which.
        """
        count = 0
        for where, texts in rows:
            for text in texts:
                count += 1
                if self.of(text):
                    raise BadInput(f"{where}: evaluation text in training: {text[:60]!r}; leave the row out")
        return count


def _hashes(text: str) -> np.ndarray:
    return np.array([zlib.crc32(word.encode()) for word in words_of(text)], np.uint64)


def _runs(hashes: np.ndarray, words: int) -> np.ndarray:
    """[max(0, n - words + 1)] uint64: a polynomial of every run of words."""
    count = len(hashes) - words + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(words):
        total = total * _BASE + hashes[place : place + count]
    return total


def texts_within(value: object) -> Iterator[str]:
    """All strings of a row that are trained on, however nested: of the columns text, query, document, chunks."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name in ("text", "query", "document", "chunks", "queries"):
            if name in value:
                yield from texts_within(value[name])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_within(part)
