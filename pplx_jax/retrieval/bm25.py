"""The BM25 baseline (Robertson and Zaragoza, 2009, in Lucene's form) over the bm25s library."""

import re
from collections.abc import Sequence

import numpy as np

from pplx_jax.core.errors import BadInput

_WORD = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def tokenize(text: str) -> list[str]:
    """Splits text or code into lower-case terms.

    Splits at every character that is not a letter or digit, and at camelCase boundaries, so that `readFile`,
    `read_file` and "read file" have the same terms. Han and Kana have no spaces; they are split into characters and
    pairs of adjacent characters, like Lucene's CJKBigramFilter with unigrams.
    """
    return [
        term
        for word in _WORD.findall(text)
        for part in _CAMEL_CASE.split(word)
        for term in _split_unspaced(part.lower())
    ]


def _split_unspaced(word: str) -> list[str]:
    if word.isascii():
        return [word]
    terms, end = [], 0
    for run in _UNSPACED.finditer(word):
        terms += [word[end : run.start()]] if run.start() > end else []
        characters, end = run.group(), run.end()
        terms += [*characters, *(a + b for a, b in zip(characters, characters[1:], strict=False))]
    return terms + [word[end:]] if end < len(word) else terms


class BM25:
    """A lexical index of documents.

    k1 = 0.9 and b = 0.4 are the parameters of Anserini's BEIR baselines.
    """

    def __init__(self, documents: Sequence[str], k1: float = 0.9, b: float = 0.4) -> None:
        """Indexes the texts.

        Raises:
            BadInput: the package bm25s is not installed, or no document has a term.
        """
        try:
            import bm25s
        except ImportError:
            raise BadInput("the BM25 baseline needs the package bm25s: pip install 'pplx-jax[eval]'") from None
        self._vocabulary: dict[str, int] = {}
        terms = [
            [self._vocabulary.setdefault(term, len(self._vocabulary)) for term in tokenize(text)] for text in documents
        ]
        if not self._vocabulary:
            raise BadInput("BM25 found no word in any document; check the text column of the corpus")
        self._documents = len(documents)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index((terms, self._vocabulary), show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Returns float32 [len(queries), N]. A document without a term of the query is not retrieved: -inf."""
        block = np.full((len(queries), self._documents), -np.inf, np.float32)
        for row, query in enumerate(queries):
            terms = [self._vocabulary[term] for term in tokenize(query) if term in self._vocabulary]
            if terms:
                found = self._index.get_scores_from_ids(terms)
                np.copyto(block[row], found, where=found > 0)  # Lucene's weights of terms are above 0
        return block
