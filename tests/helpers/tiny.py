"""The smallest vocabulary, encoder and token tables with which every stage can train."""

import dataclasses
import itertools
import pathlib

import numpy as np

from pplx_jax.data.tokens.kinds import KIND_OF_FOLDER
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.settings import Checkpointing, Logging, Training
from pplx_jax.training.stages.contextual import ContextualStage
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.stages.pair import PairStage
from pplx_jax.training.stages.triplet import TripletStage

WIDTH, LENGTH, EXAMPLES, DOCUMENTS, CHUNKS, NEGATIVES = 16, 32, 24, 10, 3, 2
OPTIMIZER = Optimizer(peak_learning_rate=0.01, warmup_steps=0)
# For comparisons of runs that round differently. A token that a batch hardly changes has a gradient of rounding errors
# only. Adam scales it up to a whole step, unless eps is larger than the gradient.
ROBUST_OPTIMIZER = dataclasses.replace(OPTIMIZER, eps=1e-3)
_GROUPED = {
    "log_every_steps": ("logging", "every_steps"),
    "profile_steps": ("logging", "profile_steps"),
    "writers": ("logging", "writers"),
    "checkpoint_every_seconds": ("checkpointing", "every_seconds"),
    "checkpoint_every_steps": ("checkpointing", "every_steps"),
    "keep_checkpoints": ("checkpointing", "keep"),
    "best_metric": ("checkpointing", "best_metric"),
    "keep_best": ("checkpointing", "keep_best"),
    "use_best": ("checkpointing", "use_best"),
}
STAGES = {
    "diffusion": DiffusionStage(batch_size=8, row_length=LENGTH),
    "pair": PairStage(batch_size=8, row_length=LENGTH, slots=8),
    "contextual": ContextualStage(batch_size=4, row_length=LENGTH, slots=8, chunks=CHUNKS),
    "triplet": TripletStage(batch_size=4, row_length=LENGTH, slots=8, negatives=NEGATIVES),
}


def training(name: str, **fields) -> Training:
    """Returns a Training of a stage. Fields of its groups are given flat, by the names of `_GROUPED`."""
    # TensorBoard's writer imports TensorFlow.
    groups: dict[str, dict[str, object]] = {"logging": {"every_steps": 1, "writers": ()}, "checkpointing": {}}
    for field in [field for field in fields if field in _GROUPED]:
        group, own = _GROUPED[field]
        groups[group][own] = fields.pop(field)
    usual = {"stage": STAGES[name], "optimizer": OPTIMIZER, "steps": 4}
    grouped = {"logging": Logging(**groups["logging"]), "checkpointing": Checkpointing(**groups["checkpointing"])}
    return Training(**{**usual, **grouped, **fields})


def with_sequences(stage, count: int):
    """The stage with batches of eight examples, each batch or packing group in `count` sequences on any devices.

    Otherwise a batch is padded to a multiple of the devices, and how it is packed depends on the number of sequences.
    """

    @dataclasses.dataclass(frozen=True)
    class Batch(type(stage.batch)):
        def sequences_needed(self, table, multiple_of):
            return count

    @dataclasses.dataclass(frozen=True)
    class WithSequences(type(stage)):
        @property
        def batch(self):
            return Batch(**vars(super().batch))

    return WithSequences(**{**vars(stage), "batch_size": 8})


def tiny_vocabulary(folder: pathlib.Path) -> Vocabulary:
    """Returns a vocabulary of 332 pieces, nearly all of them bytes."""
    words = itertools.product(("read", "write", "open", "close"), ("file", "index", "vector", "table"))
    return train_vocabulary((" ".join(pair) for pair in words), folder / "vocabulary.model", 332)


def tiny_config(vocabulary: Vocabulary, **fields) -> Qwen3Config:
    """Returns a model of one block, in float32 so that runs can be equal to the last bit, with these `fields`."""
    sizes = {"width": WIDTH, "mlp_width": 16, "layers": 1, "query_heads": 2, "kv_heads": 1, "head_dim": 16}
    return Qwen3Config(**{"vocab_size": vocabulary.size, **sizes, "dtype": "float32", **fields})


def tiny_tables(folder: pathlib.Path, vocabulary: Vocabulary) -> dict[str, TokenTable]:
    """Returns a table of random tokens for every stage, by stage."""
    generator = np.random.default_rng(0)

    def texts(count: int, shortest: int, longest: int) -> Ragged:
        lengths = generator.integers(shortest, longest + 1, count)
        return Ragged.from_arrays([generator.integers(4, vocabulary.size, length) for length in lengths])

    pair = {
        "query": texts(EXAMPLES, 2, 5),
        "document": texts(EXAMPLES, 4, 9),
        "document_hash": np.arange(EXAMPLES, dtype=np.int32),
        "source": np.zeros(EXAMPLES, np.int32),
    }
    others = [np.delete(np.arange(EXAMPLES), row) for row in range(EXAMPLES)]
    chunk_counts = generator.integers(1, CHUNKS + 1, DOCUMENTS)
    document = generator.integers(0, DOCUMENTS, EXAMPLES).astype(np.int32)
    features = {
        "diffusion": {"tokens": texts(EXAMPLES, 6, 20)},
        "pair": pair,
        "triplet": {**pair, "negatives": np.array([generator.choice(row, NEGATIVES) for row in others], np.int32)},
        "contextual": {
            "query": texts(EXAMPLES, 2, 5),
            "document": document,
            "chunk": generator.integers(0, chunk_counts[document]).astype(np.int32),
            "document_hash": document,
            "chunks": texts(int(chunk_counts.sum()), 2, 6),
            "chunks_of_document": np.concatenate([[0], np.cumsum(chunk_counts)]),
        },
    }
    for stage, columns in features.items():
        write_table(folder / stage, KIND_OF_FOLDER[stage], vocabulary, columns)
    return {
        stage: TokenTable.open(folder / stage, kind=KIND_OF_FOLDER[stage], vocabulary=vocabulary) for stage in features
    }
