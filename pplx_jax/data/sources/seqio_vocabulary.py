"""A vocabulary as a SeqIO vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from pplx_jax.data.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import seqio


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """Returns the vocabulary as a SeqIO vocabulary that gives the same ids, also within tf.data.

    TensorFlow Text contains another release of SentencePiece, which breaks ties between equally likely segmentations
    (of `########`, for example) differently. Its operation would not give the ids of training and serving.
    """
    import seqio
    import tensorflow as tf

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = vocabulary.encode_batch([text.decode() for text in texts])
        lengths = np.array([len(text) for text in ids], np.int64)
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths

    class SameIds(seqio.Vocabulary):
        bos_id = eos_id = unk_id = None
        pad_id = vocabulary.pad_id
        _base_vocab_size = vocabulary.size

        def _encode(self, s: str) -> list[int]:
            return vocabulary.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return vocabulary.decode(ids)

        def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
            values, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], (tf.int32, tf.int64))
            values.set_shape([None])
            lengths.set_shape([None])
            if s.shape.rank == 0:
                return values
            return tf.RaggedTensor.from_row_lengths(values, lengths)  # type: ignore[attr-defined]

        def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(lambda ids: vocabulary.decode(ids).encode(), [ids], tf.string)

        def __eq__(self, other) -> bool:
            return isinstance(other, seqio.Vocabulary) and getattr(other, "fingerprint", None) == self.fingerprint

        fingerprint = vocabulary.fingerprint

    return SameIds()
