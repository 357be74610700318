"""The SentencePiece vocabulary that recipes train.

It is a unigram model whose four control symbols are found by name. Its normalisation
(`data/tokens/normalization.py`) is part of the `.model` file, so every binding of SentencePiece gives the same ids.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.vocabulary import FILE_NAME, TOKENIZER, Vocabulary, write_vocabulary_file

PAD, UNKNOWN, MASK, SEPARATOR = "<pad>", "<unk>", "<mask>", "<sep>"


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
    """A vocabulary that `train_vocabulary` made, held as the bytes of its `.model` file."""

    model: bytes = dataclasses.field(repr=False)

    @classmethod
    def read(cls, path: pathlib.Path) -> "SentencePieceVocabulary":
        """Reads a `.model` file.

        Raises:
            BadInput: the file is missing, is not a SentencePiece model, or lacks one of the four symbols.
        """
        try:
            vocabulary = cls(path, path.read_bytes())
        except OSError as error:
            raise BadInput(
                f"cannot read vocabulary {path}: {error.strerror or error}; give a SentencePiece .model file, "
                f"a {TOKENIZER} or a folder that holds {FILE_NAME} or {TOKENIZER}"
            ) from None
        try:
            vocabulary._processor  # noqa: B018  (parses the file)
        except (RuntimeError, ValueError):
            raise BadInput(f"{path} is not a SentencePiece model; train or copy the vocabulary again") from None
        for piece in (PAD, UNKNOWN, MASK, SEPARATOR):
            vocabulary._id(piece)
        return vocabulary

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        if not self.model:
            raise ValueError("an empty model")
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def __reduce__(self):  # the processor holds C++ state, so another process parses the bytes again
        return type(self), (self.path, self.model)

    @property
    def size(self) -> int:
        return self._processor.get_piece_size()

    @functools.cached_property
    def pad_id(self) -> int:
        return self._id(PAD)

    @functools.cached_property
    def unknown_id(self) -> int:
        return self._id(UNKNOWN)

    @functools.cached_property
    def mask_id(self) -> int:
        return self._id(MASK)

    @functools.cached_property
    def separator_id(self) -> int:
        return self._id(SEPARATOR)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=-1) if texts else []

    def least_tokens(self, text: str) -> int:
        if not self._longest_piece:
            return 0
        return -(-len(self._processor.normalize(text)) // self._longest_piece)

    @functools.cached_property
    def _longest_piece(self) -> int:
        """Characters of the longest piece. 0 without byte pieces: unknown characters in a row are then one token."""
        processor, pieces = self._processor, range(self.size)
        if not any(map(processor.is_byte, pieces)):
            return 0
        text = (piece for piece in pieces if not processor.is_byte(piece) and not processor.is_control(piece))
        return max(len(processor.id_to_piece(piece)) for piece in text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        return write_vocabulary_file(as_path(folder) / FILE_NAME, self.model)

    def _id(self, piece: str) -> int:
        token = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token) != piece:
            raise BadInput(f"vocabulary {self.path} has no symbol {piece}; train it with train_vocabulary")
        if piece != UNKNOWN and not self._processor.is_control(token):
            raise BadInput(f"{piece} of vocabulary {self.path} is ordinary text; make it a control symbol")
        return token
