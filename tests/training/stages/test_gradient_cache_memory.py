"""A batch of 16,384 with hard negatives fits in the memory of a small one (XLA's count for the compiled step)."""

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.stages.triplet import TripletStage
from pplx_jax.training.train_state import make_step, state_layout

pytestmark = pytest.mark.long

LENGTH, SLOTS, TEXTS, ROWS_OF_MICROBATCH = 64, 4, 4, 64  # a query, its document and two negatives fill a row


def temporary_bytes(vocabulary, count, microbatches):
    config = tiny.tiny_config(vocabulary, mlp_width=128)
    stage = TripletStage(
        batch_size=count, row_length=LENGTH, slots=SLOTS, negatives=TEXTS - 2, microbatches=microbatches
    )
    optimizer, mesh = tiny.OPTIMIZER.build(3), Mesh().build()
    shapes = dict.fromkeys(("tokens", "segment_ids", "positions", "chunk_ids"), (count, LENGTH))
    shapes |= {"query": (count, 2), "document": (count, 2), "negatives": (count, TEXTS - 2, 2)}
    shapes |= {"query_hash": (count,), "document_hash": (count,), "negative_hash": (count, TEXTS - 2)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    with jax.set_mesh(mesh):
        step = make_step(stage, config, optimizer, steps=3, seed=0, mask_id=2, mesh=mesh)
        compiled = step.lower(state_layout(config, stage, optimizer, mesh), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_batch_but_by_tokens_and_embeddings(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    small, large = 4096, 16384
    of_small, of_large = (temporary_bytes(vocabulary, count, count // ROWS_OF_MICROBATCH) for count in (small, large))
    # What an example leaves however it is encoded: the int32 of its row, cut into microbatches, and its embeddings in
    # float32 several times over.
    tokens, embeddings = 4 * LENGTH * 4, 4 * TEXTS * tiny.WIDTH
    growth = (of_large - of_small) / (large - small)
    assert growth < 2 * tokens + 8 * embeddings, growth
    # Control: plain, each example brings its activations, many times as much.
    plain = temporary_bytes(vocabulary, small // 4, 1) / (small // 4)
    assert plain > 10 * growth, (plain, growth)
