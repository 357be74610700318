"""Loss and accuracy on masked tokens: of the tokens that the stage predicts, by text, with the same masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.objectives.corruption import corrupt
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.masked_tokens import masked_token_scores
from pplx_jax.training.stages.masked_lm import MaskedLMStage

LENGTH, RATE = 12, 0.5


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    vocabulary = tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    config = tiny.tiny_config(vocabulary)
    generator = np.random.default_rng(0)
    texts = [generator.integers(10, 200, size).tolist() for size in (12, 30, 5, 9, 2, 12, 12, 12, 7)]
    return vocabulary, config, initial_params(config, 0), texts


def scores(setting, stage, params=None):
    vocabulary, config, first, texts = setting
    mesh = Mesh().build()
    params = first if params is None else params
    return masked_token_scores(stage, config, params, texts, vocabulary.mask_id, mesh, rate=RATE, length=LENGTH)


@pytest.mark.parametrize("shift", [1, 0], ids=["diffusion predicts the next token", "masked_lm its own"])
def test_means_over_the_masked_tokens_of_each_text(setting, shift):
    vocabulary, config, params, texts = setting
    found = scores(setting, tiny.STAGES["diffusion"] if shift else MaskedLMStage(batch_size=1))
    assert found["loss"].shape == found["accuracy"].shape == (len(texts),)
    rows = np.zeros((8, LENGTH), np.int32)
    lengths = [min(len(text), LENGTH) for text in texts]
    for row, text in enumerate(texts[:8]):
        rows[row, : lengths[row]] = text[:LENGTH]
    segments = (np.arange(LENGTH) < np.array(lengths[:8])[:, None]).astype(np.int32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), rows.shape)
    key = jax.random.fold_in(jax.random.key(0), 0)
    corruption = corrupt(
        rows, segments, positions, key, mask_id=vocabulary.mask_id, min_time=RATE, max_time=RATE, random_length_share=0
    )
    model = bind(config, params)
    hidden = np.asarray(model(corruption.inputs, corruption.segment_ids, positions), np.float64)
    logits = hidden @ np.asarray(model.output_table, np.float64).T
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row in range(8):
        masked = [place for place in range(shift, lengths[row]) if corruption.corrupted[row, place]]
        if not masked:
            assert np.isnan(found["loss"][row])
            continue
        wanted = [-logs[row, place - shift, rows[row, place]] for place in masked]
        assert found["loss"][row] == pytest.approx(np.mean(wanted), rel=1e-4)
        hits = [logs[row, place - shift].argmax() == rows[row, place] for place in masked]
        assert found["accuracy"][row] == pytest.approx(np.mean(hits))


def test_another_model_is_scored_on_the_same_tokens(setting):
    stage = tiny.STAGES["diffusion"]
    one, two = scores(setting, stage), scores(setting, stage, initial_params(setting[1], 1))
    np.testing.assert_array_equal(np.isnan(one["loss"]), np.isnan(two["loss"]))
    assert np.nanmean(one["loss"]) != pytest.approx(np.nanmean(two["loss"]), rel=1e-3)
    flat = jax.tree.map(jnp.zeros_like, setting[2])
    np.testing.assert_allclose(
        scores(setting, stage, flat)["loss"],
        np.where(np.isnan(one["loss"]), np.nan, np.log(setting[0].size)),
        rtol=1e-5,
    )
