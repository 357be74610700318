"""A vocabulary as a SeqIO vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from pplx_jax.data.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import seqio


def seqio_vocabulary(vocabulary: Vocabulary | Callable[[], Vocabulary]) -> seqio.Vocabulary:
    """Returns the vocabulary as a SeqIO vocabulary that gives the same ids, also within tf.data.

    A function that returns the vocabulary is called when the vocabulary is first used.

    TensorFlow Text contains another release of SentencePiece, which breaks ties between equally likely segmentations
    (of `########`, for example) differently. Its operation would not give the ids of training and serving.
    """
    import seqio
    import tensorflow as tf

    found = [vocabulary] if isinstance(vocabulary, Vocabulary) else []

    def opened() -> Vocabulary:  # a plain function, which Beam can send to its workers
        if not found:
            assert not isinstance(vocabulary, Vocabulary)
            found.append(vocabulary())
        return found[0]

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = opened().encode_batch([text.decode() for text in texts])
        lengths = np.array([len(text) for text in ids], np.int64)
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths

    class SameIds(seqio.Vocabulary):
        bos_id = eos_id = unk_id = None

        @property
        def pad_id(self) -> int:
            return opened().pad_id

        @property
        def _base_vocab_size(self) -> int:
            return opened().size

        @property
        def fingerprint(self) -> str:
            return opened().fingerprint

        def _encode(self, s: str) -> list[int]:
            return opened().encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return opened().decode(ids)

        def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
            values, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], (tf.int32, tf.int64))
            values.set_shape([None])
            lengths.set_shape([None])
            if s.shape.rank == 0:
                return values
            return tf.RaggedTensor.from_row_lengths(values, lengths)  # type: ignore[attr-defined]

        def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(lambda ids: opened().decode(ids).encode(), [ids], tf.string)

        def __eq__(self, other) -> bool:
            if other is self:
                return True
            return isinstance(other, seqio.Vocabulary) and getattr(other, "fingerprint", None) == self.fingerprint

    return SameIds()
