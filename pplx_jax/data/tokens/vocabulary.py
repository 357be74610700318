"""Text to token ids and back: what every vocabulary promises, and the SentencePiece one that recipes train.

The trained vocabulary is a unigram model whose four control symbols are found by name. Its normalisation
(`data/tokens/normalization.py`) lives inside the `.model` file, so that every binding of SentencePiece encodes alike.
The vocabulary of a pretrained model is its `tokenizer.json`: see `data/tokens/tokenizer_vocabulary.py`.
"""

import abc
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import string
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.data.tokens.normalization import rules_table

FILE_NAME = "vocabulary.model"
TOKENIZER = "tokenizer.json"
PAD, UNKNOWN, MASK, SEPARATOR = "<pad>", "<unk>", "<mask>", "<sep>"
MAX_LINE_BYTES = 4192

_ASCII = string.digits + string.ascii_lowercase + string.punctuation.replace("_", "")
_THREADS = 2  # training sums floats by thread: another number gives another model


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
    """Text to token ids and back; the three tokens that training needs, which text never encodes to.

    Attributes:
        path: the file it was read from.
    """

    path: pathlib.Path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a SentencePiece `.model` file, a `tokenizer.json`, or a folder that holds either.

        Raises:
            BadInput: there is no such file, it is damaged, or a symbol that training needs is missing.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            tokenizer = not (path / FILE_NAME).exists() and (path / TOKENIZER).exists()
            path = path / (TOKENIZER if tokenizer else FILE_NAME)
        if path.suffix == ".json":
            from pplx_jax.data.tokens.tokenizer_vocabulary import TokenizerVocabulary  # it builds on this module

            return TokenizerVocabulary.read(path)
        return SentencePieceVocabulary.read(path)

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """One more than the largest token id."""

    @property
    @abc.abstractmethod
    def pad_id(self) -> int:
        """What fills rows; never read."""

    @property
    @abc.abstractmethod
    def mask_id(self) -> int:
        """What diffusion puts in a token's place."""

    @property
    @abc.abstractmethod
    def separator_id(self) -> int:
        """What stands between the chunks of a document."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what the ids depend on."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the text, nothing put before or after; the name of a special token in it is spelled out."""

    @abc.abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, as far as normalisation keeps it; special tokens give nothing."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Writes what `load(folder)` reads and returns the path of the main file."""


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
    """A vocabulary that `train_vocabulary` made, held as the bytes of its `.model` file."""

    model: bytes = dataclasses.field(repr=False)

    @classmethod
    def read(cls, path: pathlib.Path) -> "SentencePieceVocabulary":
        """Reads a `.model` file.

        Raises:
            BadInput: the file is missing, is no SentencePiece model, or lacks one of the four symbols.
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
            raise BadInput(f"{path} is no SentencePiece model; train or copy the vocabulary again") from None
        for piece in (PAD, UNKNOWN, MASK, SEPARATOR):
            vocabulary._id(piece)
        return vocabulary

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        if not self.model:
            raise ValueError("an empty model")
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def __reduce__(self):  # the processor holds C++ state: a copy in another process reads the bytes again
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

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        return write_whole(pathlib.Path(folder) / FILE_NAME, self.model)

    def _id(self, piece: str) -> int:
        token = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token) != piece:
            raise BadInput(f"vocabulary {self.path} has no symbol {piece}; train it with train_vocabulary")
        control = piece != UNKNOWN
        if control and not self._processor.is_control(token):
            raise BadInput(f"{piece} of vocabulary {self.path} is ordinary text; make it a control symbol")
        return token


def train_vocabulary(
    texts: Iterable[str],
    output: str | os.PathLike[str],
    size: int = 16384,
    *,
    sample_bytes: int = 6_000_000,
    seed: int = 0,
) -> SentencePieceVocabulary:
    """Trains a unigram model with byte fallback and writes it; equal arguments give an equal file.

    Args:
        texts: training texts; lines of a text are separate sentences.
        output: the `.model` file to write.
        size: number of ids, the 4 symbols and 256 byte pieces included.
        sample_bytes: UTF-8 bytes of whole texts, drawn without replacement, that training looks at.
        seed: of the draw.

    Raises:
        BadInput: the texts hold too few distinct pieces for `size`, or `size` leaves no room for pieces.
    """
    output = pathlib.Path(output)
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "normalization.tsv"
        rules.write_text(rules_table(), encoding="ascii")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sentences(_sample(texts, sample_bytes, seed)),
                model_writer=model,
                model_type="unigram",
                vocab_size=size,
                byte_fallback=True,
                split_digits=True,
                character_coverage=0.9995,
                required_chars=_ASCII,
                max_sentence_length=MAX_LINE_BYTES,
                normalization_rule_tsv=str(rules),
                pad_id=0,
                pad_piece=PAD,
                unk_id=1,
                unk_piece=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                control_symbols=[MASK, SEPARATOR],
                num_threads=_THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rpartition("] ")[2] or "training failed"
            raise BadInput(
                f"no vocabulary of {size} pieces for {output}: {reason}; give more text or a smaller size"
            ) from None
    write_whole(output, _portable(model.getvalue()))
    return SentencePieceVocabulary.read(output)


def _sample(texts: Iterable[str], budget: int, seed: int) -> Iterator[str]:
    texts = list(texts)
    for index in np.random.default_rng(seed).permutation(len(texts)):
        yield texts[index]
        budget -= len(texts[index].encode())
        if budget <= 0:
            return


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines without outer white space, long ones cut between words; the trainer drops what is longer."""
    limit = MAX_LINE_BYTES // 4  # characters, at up to four bytes each
    for text in texts:
        for line in text.splitlines():
            line = line.replace("\0", "").strip()
            while len(line) > limit:
                cut = line.rfind(" ", 1, limit)
                cut = cut if cut > 0 else limit
                yield line[:cut]
                line = line[cut:].lstrip()
            if line:
                yield line


def _portable(model: bytes) -> bytes:
    """The model without the name of the temporary rules file, its scores rounded to multiples of 2^-8.

    Float32 sums of such scores are exact, so ties of segmentations fall alike in every implementation.
    """
    from sentencepiece import sentencepiece_model_pb2 as protocol

    proto = protocol.ModelProto.FromString(model)  # type: ignore[attr-defined]
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    for piece in proto.pieces:
        piece.score = round(piece.score * 256) / 256
    return proto.SerializeToString(deterministic=True)


def write_whole(path: pathlib.Path, content: bytes) -> pathlib.Path:
    """Writes a file under its final name only once it is whole, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path
