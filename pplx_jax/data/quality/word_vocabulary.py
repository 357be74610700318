"""Counts words instead of tokens, for reports without a vocabulary."""

import dataclasses
import pathlib
from collections.abc import Iterable

from pplx_jax.data.sources.overlap import words_of
from pplx_jax.data.tokens.vocabulary import Vocabulary

_SPECIAL = ("<pad>", "<mask>", "<sep>")


@dataclasses.dataclass(frozen=True)
class WordVocabulary(Vocabulary):
    """Each distinct word has an id, in the order of first occurrence. It cannot be saved or trained with."""

    path: pathlib.Path = pathlib.Path("words")
    _words: dict[str, int] = dataclasses.field(default_factory=lambda: dict(zip(_SPECIAL, range(3), strict=True)))
    pad_id = 0
    mask_id = 1
    separator_id = 2
    fingerprint = "words"

    @property
    def size(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        return [self._words.setdefault(word, len(self._words)) for word in words_of(text)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        words = list(self._words)
        return " ".join(words[token] for token in ids if token >= len(_SPECIAL))

    def save(self, folder):
        raise NotImplementedError("words are counted for reports only")
