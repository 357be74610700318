"""Finds training texts that contain evaluation text, by whole texts and by runs of words."""

import hashlib
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput

WORDS = 16  # words of a run; runs this long rarely agree by chance. GPT-3 used 8 to 13 (arXiv 2005.14165, appendix C)
COMMON = 10  # a run in more evaluation texts than this is boilerplate
_DIGEST_BYTES = hashlib.sha256().digest_size
_CACHED = 100_000  # texts whose result is cached; a passage occurs in many rows
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, kana, Han: each character counts as a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Returns the words of a text, case-folded. In scripts without spaces each character is a word."""
    return _WORD.findall(text.casefold())


class Overlap:
    """Detects overlap with a set of evaluation texts.

    A text overlaps if its words equal those of an evaluation text, or if it shares a run of `words` words with one.
    Runs that occur in more than `common` evaluation texts do not count. Words are compared by their CRC-32.

    Attributes:
        fingerprint: hexadecimal SHA-256 of the evaluation texts' runs and words.
    """

    def __init__(self, evaluation: Iterable[str], words: int = WORDS, common: int = COMMON):
        self._words = words
        self._cache: dict[bytes, bool] = {}  # digest of a text -> result
        hashes = [word_hashes(text) for text in dict.fromkeys(evaluation)]
        runs = [np.unique(run_hashes(one, words)) for one in hashes]
        found, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_counts=True)
        self._runs = found[counts <= common]
        texts = [_digest(text) for text in sorted({one.tobytes() for one in hashes if len(one)})]
        self._texts = set(texts)
        self.fingerprint = hashlib.sha256(b"".join([self._runs.tobytes(), *texts])).hexdigest()

    def to_bytes(self) -> bytes:
        """Returns the test as a NumPy archive without pickles; `from_bytes` is its inverse."""
        texts = np.frombuffer(b"".join(sorted(self._texts)), np.uint8)
        file = io.BytesIO()
        np.savez(file, words=self._words, runs=self._runs, texts=texts, fingerprint=self.fingerprint)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Overlap":
        """Returns the test that `to_bytes` stored.

        Raises:
            ValueError: the content is anything else, such as a pickle, which is not opened.
        """
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            found = cls((), words=int(stored["words"]))
            found._runs, texts = stored["runs"], stored["texts"].tobytes()
            found._texts = {texts[begin : begin + _DIGEST_BYTES] for begin in range(0, len(texts), _DIGEST_BYTES)}
            found.fingerprint = str(stored["fingerprint"])
        return found

    def of(self, text: str) -> bool:
        """Returns whether a training text overlaps with the evaluation texts."""
        key = _digest(text.encode(errors="surrogatepass"))
        if key not in self._cache:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[key] = self._overlaps(text)
        return self._cache[key]

    def _overlaps(self, text: str) -> bool:
        hashes = word_hashes(text)
        if _digest(hashes.tobytes()) in self._texts:
            return True
        runs = run_hashes(hashes, self._words)
        if not len(runs) or not len(self._runs):
            return False
        places = np.searchsorted(self._runs, runs).clip(max=len(self._runs) - 1)
        return bool(np.any(self._runs[places] == runs))

    def refuse(self, rows: Iterable[tuple[str, Sequence[str]]]) -> int:
        """Checks rows that will be trained on, and returns the number of texts.

        Args:
            rows: (place, texts) of each row.

        Raises:
            BadInput: a text overlaps.
        """
        count = 0
        for where, texts in rows:
            for text in texts:
                count += 1
                if self.of(text):
                    raise BadInput(f"{where}: evaluation text in training: {text[:60]!r}; leave the row out")
        return count


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def word_hashes(text: str) -> np.ndarray:
    """Returns the CRC-32 of each word of a text: uint64 [n]."""
    return np.array([zlib.crc32(word.encode()) for word in words_of(text)], np.uint64)


def run_hashes(hashes: np.ndarray, words: int) -> np.ndarray:
    """Returns a polynomial hash of every run of words: uint64 [max(0, n - words + 1)]."""
    count = len(hashes) - words + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(words):
        total = total * _BASE + hashes[place : place + count]
    return total


def texts_within(value: object) -> Iterator[str]:
    """Yields all strings of a row that are trained on: those in text, query, document, chunks and queries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name in ("text", "query", "document", "chunks", "queries"):
            if name in value:
                yield from texts_within(value[name])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_within(part)
