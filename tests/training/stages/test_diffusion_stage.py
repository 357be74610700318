"""Diffusion in microbatches: corruption, loss, metrics and gradient are those of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from pplx_jax.core.parameter_trees import named_leaves
from pplx_jax.models.parameters import initial_params
from pplx_jax.objectives.corruption import corrupt
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.training.train_state import make_step, stage_loss, state_layout

pytestmark = pytest.mark.slow

SEQUENCES, MASK_ID = 8, 2
ALL = np.arange(tiny.EXAMPLES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = tiny.tiny_vocabulary(folder)
    table = tiny.tiny_tables(folder, vocabulary)["diffusion"]
    batch = tiny.STAGES["diffusion"].batch.pack(table, ALL[:16], SEQUENCES).arrays
    return tiny.tiny_config(vocabulary), {name: jnp.asarray(array) for name, array in batch.items()}


@functools.cache
def grading(config, **fields):
    stage = dataclasses.replace(tiny.STAGES["diffusion"], **fields)
    loss_of = stage_loss(stage, config, steps=4, seed=0, mask_id=MASK_ID)
    return jax.jit(jax.value_and_grad(loss_of, has_aux=True)), initial_params(config, 0)


def graded(config, batch, step=1, **fields):
    grade, params = grading(config, **fields)
    return grade(params, batch, jnp.int32(step))


def distance(one, two) -> float:
    """The norm of the difference relative to that of `two`."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, one, two)) / optax.tree.norm(two))


@pytest.mark.parametrize("normalizer, microbatches", [("valid", 2), ("masked", 8)])
def test_microbatches_change_neither_loss_nor_metrics_nor_gradient(made, normalizer, microbatches):
    config, batch = made
    (expected, expected_metrics), exact = graded(config, batch, normalizer=normalizer)
    (loss, metrics), gradient = graded(config, batch, normalizer=normalizer, microbatches=microbatches)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    assert distance(gradient, exact) < 1e-6
    for name, part in named_leaves(exact).items():  # in every parameter
        scale = np.abs(part).max()
        np.testing.assert_allclose(named_leaves(gradient)[name], part, rtol=1e-4, atol=2e-6 * scale, err_msg=name)
    # Control: halves with a corruption and a normalisation of their own.
    halves = [{name: array[half::2] for name, array in batch.items()} for half in range(2)]
    separate = [graded(config, half, normalizer=normalizer)[1] for half in halves]
    assert distance(jax.tree.map(lambda *parts: sum(parts) / 2, *separate), exact) > 1e-2


def test_corruption_of_a_sequence_does_not_depend_on_how_many_there_are(made):
    _, batch = made
    arrays = (batch["tokens"], batch["segment_ids"], batch["positions"])
    rng = jax.random.key(5)
    every = corrupt(*arrays, rng, mask_id=MASK_ID)
    # A multiple of the microbatches may need more sequences; those before them are corrupted alike.
    more = corrupt(*(jnp.concatenate([array, array]) for array in arrays), rng, mask_id=MASK_ID)
    for name in every._fields:
        np.testing.assert_array_equal(getattr(more, name)[:SEQUENCES], getattr(every, name), err_msg=name)
    assert np.any(more.corrupted[SEQUENCES:] != every.corrupted)  # control


def test_memory_is_that_of_a_microbatch(made):
    config, _ = made
    config = dataclasses.replace(config, mlp_width=512)
    mesh, optimizer = Mesh().build(), tiny.OPTIMIZER.build(3)

    def temporary_bytes(sequences, microbatches):
        stage = dataclasses.replace(tiny.STAGES["diffusion"], microbatches=microbatches)
        shape = jax.ShapeDtypeStruct((sequences, tiny.LENGTH), np.int32, sharding=batch_sharding(mesh))
        batch = dict.fromkeys(("tokens", "segment_ids", "positions", "chunk_ids"), shape)
        with jax.set_mesh(mesh):
            step = make_step(stage, config, optimizer, steps=3, seed=0, mask_id=2, mesh=mesh)
            compiled = step.lower(state_layout(config, stage, optimizer, mesh), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, small, large = temporary_bytes(256, 1), temporary_bytes(64, 4), temporary_bytes(256, 16)
    # What grows are the arrays of the corruption: some numbers of 4 bytes for each token.
    assert large - small < 192 * tiny.LENGTH * 4 * 12
    assert whole > 4 * large  # control
