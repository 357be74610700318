"""What every vocabulary promises: text to token ids and back, and three special tokens.

Two kinds exist: the SentencePiece model that recipes train (`sentencepiece_vocabulary.py`, trained by
`train_vocabulary.py`) and the `tokenizer.json` of a pretrained model (`tokenizer_vocabulary.py`). Open either kind
with `load_vocabulary.load_vocabulary`.
"""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Iterable

from pplx_jax.core.files import atomic_path

FILE_NAME = "vocabulary.model"
TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
    """Text to token ids and back. No text encodes to the pad, mask or separator token.

    Attributes:
        path: the file that it was read from.
    """

    path: pathlib.Path

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """One more than the largest token id."""

    @property
    @abc.abstractmethod
    def pad_id(self) -> int:
        """The token that fills the rest of a sequence; no model reads it."""

    @property
    @abc.abstractmethod
    def mask_id(self) -> int:
        """The token that the diffusion objective puts in place of others."""

    @property
    @abc.abstractmethod
    def separator_id(self) -> int:
        """The token between two chunks of a document."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of everything that the ids depend on."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without a start or end token. The name of a special token is encoded as text."""

    @abc.abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encodes every text, on all cores."""

    def least_tokens(self, text: str) -> int:
        """Returns a number of tokens that a text has at least, from its length, without encoding it. 0 if unknown."""
        return 0

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the normalised text of the ids. Special tokens are left out."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Writes files that `load_vocabulary(folder)` reads, and returns the path of the main file."""


def write_vocabulary_file(path: pathlib.Path, content: bytes) -> pathlib.Path:
    """Writes a file of a vocabulary atomically, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path
