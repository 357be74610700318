"""Trains the SentencePiece vocabulary of a recipe."""

import io
import os
import pathlib
import string
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.normalization import rules_table
from pplx_jax.data.tokens.sentencepiece_vocabulary import MASK, PAD, SEPARATOR, UNKNOWN, SentencePieceVocabulary
from pplx_jax.data.tokens.vocabulary import write_vocabulary_file

MAX_LINE_BYTES = 4192

_ASCII = string.digits + string.ascii_lowercase + string.punctuation.replace("_", "")
_THREADS = 2  # training sums floats by thread, so another number of threads gives another model


def train_vocabulary(
    texts: Iterable[str],
    output: str | os.PathLike[str],
    size: int = 16384,
    *,
    sample_bytes: int = 6_000_000,
    seed: int = 0,
) -> SentencePieceVocabulary:
    """Trains a unigram model with byte fallback and writes it. Equal arguments give equal files.

    Args:
        texts: training texts; each line of a text is a separate sentence.
        output: the `.model` file to write.
        size: number of ids, including 4 symbols and 256 byte pieces.
        sample_bytes: UTF-8 bytes of whole texts, drawn without replacement, to train on.
        seed: seed of the draw.

    Raises:
        BadInput: the texts hold too few distinct pieces for `size`, or `size` is too small for the fixed pieces.
    """
    output = as_path(output)
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
    write_vocabulary_file(output, _portable(model.getvalue()))
    return SentencePieceVocabulary.read(output)


def _sample(texts: Iterable[str], budget: int, seed: int) -> Iterator[str]:
    texts = list(texts)
    for index in np.random.default_rng(seed).permutation(len(texts)):
        yield texts[index]
        budget -= len(texts[index].encode())
        if budget <= 0:
            return


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yields stripped lines. Long lines are split between words, because the trainer silently drops them."""
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
    """Removes the name of the temporary rules file and rounds the scores to multiples of 2^-8.

    Float32 sums of such scores are exact, so every implementation breaks ties between segmentations alike.
    """
    from sentencepiece import sentencepiece_model_pb2 as protocol

    proto = protocol.ModelProto.FromString(model)  # type: ignore[attr-defined]
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    for piece in proto.pieces:
        piece.score = round(piece.score * 256) / 256
    return proto.SerializeToString(deterministic=True)
