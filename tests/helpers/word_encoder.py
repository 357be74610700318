"""A model for tests: the vector of a text is the sum of fixed random vectors of its words."""

import types
import zlib

import numpy as np

from pplx_jax.inference.overflow import TooLong
from pplx_jax.kernels.quantization import quantize


class WordEncoder:
    """Counts its calls, so that a test sees what was encoded again."""

    def __init__(self, dims=32, max_length=20, fingerprint="words"):
        self.dims, self.fingerprint = dims, fingerprint
        self.config = types.SimpleNamespace(max_length=max_length)
        self.encoded = 0

    def count_tokens(self, texts):
        return np.array([len(text.split()) for text in texts], np.int64)

    def encode(self, texts, *, quantization="int8", dims=None, overflow="error", overlap=None):
        vectors = np.zeros((len(texts), self.dims), np.float32)
        for row, text in enumerate(texts):
            words = text.split()
            if len(words) > self.config.max_length and overflow == "error":
                raise TooLong(row, len(words), self.config.max_length, fix="shorten it")
            for word in words[: self.config.max_length]:
                vectors[row] += np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.dims)
        self.encoded += len(texts)
        return quantize(vectors[:, :dims], quantization)

    def encode_documents(self, documents, *, quantization="int8", dims=None, overflow="error", overlap=None):
        """Moves the vector of each chunk towards that of its document."""
        result = []
        for place, chunks in enumerate(documents):
            tokens = self.count_tokens(chunks).sum() + len(chunks) - 1
            if tokens > self.config.max_length and overflow == "error":
                raise TooLong(place, tokens, self.config.max_length, noun="document", fix="shorten it")
            alone = self.encode(chunks, quantization="none", dims=dims, overflow=overflow)
            result.append(quantize(alone + alone.mean(axis=0), quantization))
        return result
