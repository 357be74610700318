"""A vocabulary and token tables small enough to check by hand."""

import pathlib
import types

import numpy as np
import pytest

from pplx_jax.data.token_files import Ragged, TokenTable, write_table

# Stands for a Vocabulary where only its ids matter.
VOCABULARY = types.SimpleNamespace(
    fingerprint="5eed" * 16, size=1000, pad_id=0, mask_id=2, separator_id=3, path=pathlib.Path("stub.model")
)
TEXTS = [
    f"def {verb}_{noun}(path, flags):\n    # {number} ways to {verb} the {noun} ########\n    return {noun}"
    for number, verb in enumerate(["read", "write", "open", "close", "merge", "split", "rank", "pool"])
    for noun in ["file", "index", "vector", "document", "café", "query", "table", "shard"]
]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A real SentencePiece vocabulary of a few hundred pieces."""
    from pplx_jax.data.vocabulary import train_vocabulary

    return train_vocabulary(TEXTS, tmp_path_factory.mktemp("vocabulary") / "vocabulary.model", 380)


def random_texts(generator: np.random.Generator, lengths) -> Ragged:
    return Ragged.from_arrays([generator.integers(4, VOCABULARY.size, length) for length in lengths])


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> dict[str, TokenTable]:
    """A random table of every stage, by stage: 60 examples (contextual: 60 queries of 25 documents)."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tables")
    count, documents = 60, 25
    pair = {
        "query": random_texts(generator, generator.integers(1, 9, count)),
        "document": random_texts(generator, generator.integers(5, 40, count)),
        "document_hash": generator.integers(-(2**31), 2**31, count).astype(np.int32),
        "source": generator.integers(0, 3, count).astype(np.int32),
    }
    negatives = [generator.choice(np.delete(np.arange(count), row), 4, replace=False) for row in range(count)]
    chunk_counts = generator.integers(1, 5, documents)
    chunk_counts[0] = 4  # the longest document, with an empty chunk
    chunk_lengths = generator.integers(1, 15, chunk_counts.sum())
    chunk_lengths[1] = 0
    document = generator.integers(0, documents, count).astype(np.int32)
    features = {
        "diffusion": {"tokens": random_texts(generator, generator.integers(3, 33, count))},
        "pair": pair,
        "triplet": {**pair, "negatives": np.array(negatives, np.int32)},
        "contextual": {
            "query": random_texts(generator, generator.integers(1, 9, count)),
            "document": document,
            "chunk": generator.integers(0, chunk_counts[document]).astype(np.int32),
            "document_hash": (document * 7919).astype(np.int32),
            "chunks": random_texts(generator, chunk_lengths),
            "chunks_of_document": np.concatenate([[0], np.cumsum(chunk_counts)]),
        },
    }
    for stage in features:
        write_table(folder / stage, stage, VOCABULARY, features[stage])
    return {stage: TokenTable.open(folder / stage, stage=stage) for stage in features}
