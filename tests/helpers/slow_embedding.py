"""Embeds a file slowly with a tiny random model: a test runs it as a program and kills it."""

import pathlib
import sys
import time

import jax

from helpers import tiny
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.embed_file import embed_file


def embed(source: pathlib.Path, output: pathlib.Path, vocabulary: pathlib.Path, seconds: float = 0.0) -> None:
    """Waits so long at every call of the model."""

    class Slow(Embedder):
        def encode_documents(self, documents, **options):
            time.sleep(seconds)
            return super().encode_documents(documents, **options)

    pieces = load_vocabulary(vocabulary)
    config = tiny.tiny_config(pieces, max_length=64)
    model = LoadedModel(config, pieces, jax.device_get(initial_params(config, 0)), "v1", "pair")
    embed_file("model", source, output, encoder=Slow(model), shard_size=20, chunk_tokens=12, overflow="split")


if __name__ == "__main__":
    *paths, wait = sys.argv[1:]
    embed(*map(pathlib.Path, paths), float(wait))
