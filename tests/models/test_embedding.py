"""Pooling by the last token: against a loop, isolation bit for bit, and the one path from a recipe to vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.huggingface.families import family_of
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.embedding import embed, last_token
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.training.train_state import stage_loss

SLOTS = 4


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def config_of(vocabulary, **fields):
    return tiny.tiny_config(vocabulary, **{"pooling": "last", "embedding_init_std": 0.5, "remat": False, **fields})


def test_last_token_against_a_loop_with_gradients():
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(2, 12, 5)).astype(np.float32)
    chunk_ids = np.array([[1, 1, 1, 0, 2, 2, 3, 0, 0, 0, 0, 0], [3, 3, 3, 3, 0, 1, 0, 0, 0, 0, 0, 4]])
    pooled, counts = last_token(jnp.asarray(hidden), jnp.asarray(chunk_ids), SLOTS)
    expected, last = np.zeros((2, SLOTS, 5), np.float32), np.zeros((2, 12), bool)
    for row, slot in np.ndindex(2, SLOTS):
        places = np.flatnonzero(chunk_ids[row] == slot + 1)
        assert counts[row, slot] == len(places)
        if len(places):
            expected[row, slot], last[row, places[-1]] = hidden[row, places[-1]], True
    np.testing.assert_array_equal(pooled, expected)
    gradient = jax.grad(lambda hidden: last_token(hidden, jnp.asarray(chunk_ids), SLOTS)[0].sum())(jnp.asarray(hidden))
    np.testing.assert_array_equal(gradient, np.repeat(last[..., None], 5, -1).astype(np.float32))
    half, _ = last_token(jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(chunk_ids), SLOTS)
    assert half.dtype == jnp.float32


def packed(texts, length, start=0):
    """One sequence: padding of `start` tokens, the texts, padding."""
    arrays = {name: np.zeros((1, length), np.int32) for name in ("tokens", "segment_ids", "positions", "chunk_ids")}
    place = start
    for name, text in enumerate(texts, 1):
        part = np.s_[0, place : place + len(text)]
        arrays["tokens"][part], arrays["positions"][part] = text, np.arange(len(text))
        arrays["segment_ids"][part] = arrays["chunk_ids"][part] = name
        place += len(text)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_other_texts_move_no_bit(vocabulary, causal):
    config = config_of(vocabulary, causal=causal)
    params = initial_params(config, 0)
    vectors = jax.jit(lambda batch: embed(bind(config, params), batch, SLOTS)[0])
    generator = np.random.default_rng(1)
    text, other, third = (generator.integers(4, 300, size) for size in (7, 9, 5))
    batch = packed([text, other], 32)
    found = np.asarray(vectors(batch))
    assert np.abs(found[0, 0]).max() > 0
    np.testing.assert_array_equal(vectors(packed([text, other[::-1]], 32))[0, 0], found[0, 0])
    padded = batch | {"tokens": jnp.where(batch["segment_ids"] > 0, batch["tokens"], 300)}
    np.testing.assert_array_equal(vectors(padded), found)
    np.testing.assert_array_equal(vectors(packed([text, other, third], 32))[0, :2], found[0, :2])
    # Control: a token of the text itself.
    assert np.any(np.asarray(vectors(packed([text[::-1], other], 32)))[0, 0] != found[0, 0])


def test_a_causal_last_token_sees_the_whole_text_and_no_other_token_does(vocabulary):
    config = config_of(vocabulary, causal=True)
    params, text = initial_params(config, 0), np.arange(10, 20)
    first = text.copy()
    first[0] = 50

    def vector(text, **fields):
        model = bind(dataclasses.replace(config, **fields), params)
        return np.asarray(jax.jit(lambda batch: embed(model, batch, SLOTS)[0][0, 0])(packed([text], 16)))

    assert np.any(vector(first) != vector(text))
    model, names = jax.jit(bind(config, params)), ("tokens", "segment_ids", "positions")
    hidden = [np.asarray(model(*map(packed([one], 16).get, names))) for one in (text, [*text[:-1], 50])]
    np.testing.assert_array_equal(hidden[0][0, :9], hidden[1][0, :9])
    np.testing.assert_array_equal(vector(text), hidden[0][0, 9])
    assert np.any(vector(text, pooling="mean") != vector(text))  # control


@pytest.mark.slow
def test_training_and_embedder_pool_alike(vocabulary, tmp_path):
    config = config_of(vocabulary)
    params = initial_params(config, 0)
    embedder = Embedder(LoadedModel(config, vocabulary, jax.tree.map(np.asarray, params), "v1", "pair"))
    texts = [np.arange(10, 10 + length) for length in (5, 3, 8)]
    found = embedder.encode_tokens(texts)
    expected = embed(bind(config, params), packed(texts, 32), SLOTS)[0][0, :3]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match="overflow='split' takes means"):
        embedder.encode(["open the file"], overflow="split")
    mean = embed(bind(dataclasses.replace(config, pooling="mean"), params), packed(texts, 32), SLOTS)[0][0, :3]
    assert np.abs(mean - expected).max() > 1e-2  # control
    # A step of the pair stage depends on the pooling of the model.
    table = tiny.tiny_tables(tmp_path, vocabulary)["pair"]
    batch = tiny.STAGES["pair"].batch.pack(table, np.arange(8), 4).arrays

    def loss(config):
        loss_of = stage_loss(tiny.STAGES["pair"], config, steps=4, seed=0, mask_id=2)
        return float(jax.jit(loss_of)(params, batch, jnp.int32(1))[0])

    assert loss(config) != loss(dataclasses.replace(config, pooling="mean"))


def test_the_pooling_is_part_of_the_fingerprint_and_refused_by_export(vocabulary):
    config = config_of(vocabulary)
    mean = dataclasses.replace(config, pooling="mean")
    assert "pooling" not in mean.computing and config.computing["pooling"] == "last"
    with pytest.raises(BadInput, match="pooling='last' cannot be exported"):
        family_of(dataclasses.replace(config, qk_norm=True))
    family_of(mean)
    with pytest.raises(BadInput, match=r"pooling.*mean or last"):
        config_of(vocabulary, pooling="first")
