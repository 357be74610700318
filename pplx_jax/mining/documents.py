"""The documents that mining ranks: those of the pairs, then those of other token tables, each text once."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_table import TokenTable


class Candidates(NamedTuple):
    """Texts of a table to rank: the `rows` [n] of `texts`."""

    texts: Ragged
    rows: np.ndarray


class Documents:
    """The texts of several tables, concatenated. Texts with equal tokens are one document.

    Args:
      candidates: of each table.
      longest: number of tokens that texts are cut to; None for all.

    Attributes:
      places: [N] index of each document's first text among all texts.
      numbers: [texts] the document of every text; -1 for a text without tokens.
      fingerprint: of all tokens.
    """

    def __init__(self, candidates: Sequence[Candidates], longest: int | None):
        self._candidates, self._longest = candidates, longest
        self._ends = np.cumsum([len(rows) for _, rows in candidates])
        self.numbers = np.full(self._ends[-1], -1, np.int64)
        known: dict[bytes, int] = {}
        places: list[int] = []
        for place in range(len(self.numbers)):
            if len(tokens := self.text(place)):
                key = hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
                self.numbers[place] = known.setdefault(key, len(places))
                if len(known) > len(places):
                    places.append(place)
        self.places = np.array(places, np.int64)
        self.fingerprint = hashlib.sha256(b"".join(known) + self.numbers.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def text(self, place: int) -> np.ndarray:
        """Returns the tokens of a text, int32."""
        table = int(np.searchsorted(self._ends, place, side="right"))
        texts, rows = self._candidates[table]
        tokens = texts[rows[place - self._ends[table]]]  # a negative index, from the end
        return np.asarray(tokens[: self._longest], np.int32)


def candidates_of(table: TokenTable) -> Candidates:
    """Returns documents of a pair or triplet table, chunks of a contextual table, texts of a diffusion table."""
    match table.kind:
        case "text":
            pieces = table["text_lengths"].values if "text_lengths" in table else table["tokens"].lengths()
            texts = Ragged.from_lengths(table["tokens"].values, pieces)
        case "contextual":
            texts = table["chunks"]
        case _:
            texts = table["document"]
    return Candidates(texts, np.arange(len(texts)))


def answers_of(table: TokenTable) -> np.ndarray:
    """Returns int [Q], the index of the candidate that answers each query of a table."""
    match table.kind:
        case "text":
            return np.zeros(0, np.int64)
        case "contextual":
            return table["chunks_of_document"][table["document"]] + table["chunk"]
    return np.arange(table.count)
