"""The stages that diffusion is compared with: their masks, their rates, and their losses through a real model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.training.stages.autoregressive import AutoregressiveStage
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.stages.masked_lm import MaskedLMStage
from pplx_jax.training.stages.masked_next_token import MaskedNextTokenStage
from pplx_jax.training.train_state import stage_loss

MASK_ID = 2
STAGES = {
    "autoregressive": AutoregressiveStage(16, row_length=tiny.LENGTH),
    "masked_lm": MaskedLMStage(16, row_length=tiny.LENGTH),
    "masked_next_token": MaskedNextTokenStage(16, row_length=tiny.LENGTH),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = tiny.tiny_vocabulary(folder)
    table = tiny.tiny_tables(folder, vocabulary)["diffusion"]
    batch = STAGES["masked_lm"].batch.pack(table, np.arange(16), 8).arrays
    return tiny.tiny_config(vocabulary, embedding_init_std=0.5, remat=False), {
        name: jnp.asarray(array) for name, array in batch.items()
    }


def graded(config, stage, batch, step=1):
    """The loss and its gradient, with the encoder as the stage trains it."""
    encoder = tiny.training("diffusion", stage=stage).model(config)
    loss_of = stage_loss(stage, encoder, steps=4, seed=0, mask_id=MASK_ID)
    (loss, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        initial_params(config, 0), batch, jnp.int32(step)
    )
    return float(loss), gradient


def distance(one, two) -> float:
    norm = functools.partial(jax.tree.reduce, lambda total, leaf: total + float(jnp.sum(leaf**2)), initializer=0.0)
    return (norm(jax.tree.map(jnp.subtract, one, two)) / norm(two)) ** 0.5


def test_a_stage_has_its_own_mask_and_the_others_have_that_of_the_model(made):
    config, _ = made
    causal = dataclasses.replace(config, causal=True)
    for stage in (*STAGES.values(), *tiny.STAGES.values()):
        own = tiny.training("diffusion", stage=stage)
        assert own.model(config).causal == (stage.name == "autoregressive")
        assert own.model(causal).causal


def test_the_autoregressive_loss_is_that_of_a_causal_model_alone(made):
    config, batch = made
    loss, _ = graded(config, STAGES["autoregressive"], batch)
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"])

    def mean(causal):
        model = bind(dataclasses.replace(config, causal=causal), initial_params(config, 0))
        arrays = (batch[name] for name in ("tokens", "segment_ids", "positions"))
        log = np.asarray(jax.jit(lambda *arrays: jax.nn.log_softmax(model(*arrays) @ model.output_table.T))(*arrays))
        pairs = [(row, place) for row, place in np.ndindex(tokens.shape) if place and segments[row, place]]
        pairs = [(row, place) for row, place in pairs if segments[row, place - 1] == segments[row, place]]
        return -np.mean([log[row, place - 1, tokens[row, place]] for row, place in pairs])

    np.testing.assert_allclose(loss, mean(causal=True), rtol=1e-5)
    assert abs(mean(causal=False) / loss - 1) > 1e-4  # control: the mask matters


@pytest.mark.parametrize("name", ["masked_lm", "masked_next_token"])
def test_a_fixed_share_is_masked_and_every_step_masks_other_tokens(made, name, monkeypatch):
    config, batch = made
    seen = []

    class Recording(type(STAGES[name])):
        def targets(self, tokens, corruption):
            seen.append(corruption)
            return super().targets(tokens, corruption)

    wide = {key: jnp.tile(array, (64, 1)) for key, array in batch.items()}
    stage = Recording(16, row_length=tiny.LENGTH, mask_rate=0.3)
    for step in (1, 2):
        stage_loss(stage, config, steps=4, seed=0, mask_id=MASK_ID)(initial_params(config, 0), wide, jnp.int32(step))
    first, second = seen[0], seen[-1]
    texts = np.asarray(wide["segment_ids"]) > 0
    np.testing.assert_array_equal(first.segment_ids, wide["segment_ids"])  # no text is cut
    assert abs(np.asarray(first.corrupted)[texts].mean() - 0.3) < 0.01
    assert not np.asarray(first.corrupted)[~texts].any()
    assert (np.asarray(first.inputs)[np.asarray(first.corrupted)] == MASK_ID).all()
    assert np.any(first.corrupted != second.corrupted)


def test_masked_next_tokens_are_diffusion_at_a_fixed_time(made, monkeypatch):
    config, batch = made
    rate = 0.4
    loss, gradient = graded(config, dataclasses.replace(STAGES["masked_next_token"], mask_rate=rate), batch)
    from pplx_jax.training.stages import diffusion

    fixed = functools.partial(diffusion.corrupt, max_time=rate)
    monkeypatch.setattr(diffusion, "corrupt", fixed)
    same = DiffusionStage(16, row_length=tiny.LENGTH, normalizer="masked", min_time=rate, random_length_share=0.0)
    expected, exact = graded(config, same, batch)
    # The weight 1 / t is a constant there.
    np.testing.assert_allclose(loss, rate * expected, rtol=1e-5)
    assert distance(gradient, jax.tree.map(lambda leaf: rate * leaf, exact)) < 1e-5
    masked_lm, _ = graded(config, dataclasses.replace(STAGES["masked_lm"], mask_rate=rate), batch)
    assert abs(masked_lm / loss - 1) > 1e-3  # control: without the shift


@pytest.mark.long
@pytest.mark.parametrize("name", ["autoregressive", "masked_next_token"])
def test_microbatches_change_neither_loss_nor_gradient(made, name):
    config, batch = made
    expected, exact = graded(config, STAGES[name], batch)
    loss, gradient = graded(config, dataclasses.replace(STAGES[name], microbatches=4), batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert distance(gradient, exact) < 1e-6


@pytest.mark.parametrize(
    "stage, fields",
    [
        (MaskedLMStage, {"mask_rate": 0.0}),
        (MaskedLMStage, {"mask_rate": 1.0}),
        (MaskedNextTokenStage, {"mask_rate": -1.0}),
        (AutoregressiveStage, {"microbatches": 0}),
        (AutoregressiveStage, {"row_length": 0}),
    ],
)
def test_a_wrong_field_is_refused_by_name(stage, fields):
    with pytest.raises(BadInput, match=next(iter(fields))):
        stage(8, **fields)


def test_the_cost_counts_the_predicted_tokens():
    assert STAGES["autoregressive"].predicted_share() == 1.0
    assert (STAGES["masked_lm"].predicted_share(), STAGES["masked_next_token"].predicted_share()) == (0.4, 0.2)
