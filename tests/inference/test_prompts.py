"""Prompts of a model: `Embedder` puts them before texts by name, and other prompts make another fingerprint."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.merge_folders import merge_checkpoints
from pplx_jax.checkpoints.model_folder import load_model, save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.inference.embedder import Embedder
from pplx_jax.inference.encoder import document_encoder, query_encoder
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.prompted_encoder import PromptedEncoder
from pplx_jax.models.parameters import initial_params

PROMPTS = {"query": "ask: ", "document": "tell: ", "sts": "compare: "}
TEXTS = ["read the file", "open the index", ""]
ALL = {"quantization": "none"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    vocabulary = tiny.tiny_vocabulary(tmp_path_factory.mktemp("prompts"))
    config = tiny.tiny_config(vocabulary)
    params = jax.tree.map(np.asarray, initial_params(config, 0))
    return LoadedModel(config, vocabulary, params, "v1", "pair")


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, loaded.config, loaded.vocabulary, loaded.params, stage="pair", prompts=PROMPTS)
    return folder


def plain(loaded, prompt, texts=TEXTS):
    """Vectors of the same texts with the prompt written into them."""
    return Embedder(loaded).encode([prompt + text if text else "" for text in texts], **ALL)


def test_queries_documents_and_named_texts_have_their_prompts(loaded, folder):
    model = Embedder.load(folder)
    assert model.prompts == PROMPTS
    np.testing.assert_array_equal(model.encode(TEXTS, **ALL), plain(loaded, ""))
    np.testing.assert_array_equal(model.encode_queries(TEXTS, **ALL), plain(loaded, "ask: "))
    np.testing.assert_array_equal(document_encoder(model)(TEXTS, **ALL), plain(loaded, "tell: "))
    np.testing.assert_array_equal(model.encode(TEXTS, prompt_name="sts", **ALL), plain(loaded, "compare: "))
    np.testing.assert_array_equal(model.encode(TEXTS, prompt="other: ", **ALL), plain(loaded, "other: "))
    assert (model.encode_queries(TEXTS, **ALL) != model.encode(TEXTS, **ALL))[:2].any()
    (chunks,) = model.encode_documents([TEXTS[:2]], **ALL)
    (expected,) = Embedder(loaded).encode_documents([["tell: " + TEXTS[0], TEXTS[1]]], **ALL)
    np.testing.assert_array_equal(chunks, expected)
    with pytest.raises(BadInput, match="no prompt 'clustering'; it has query, document, sts"):
        model.encode(TEXTS, prompt_name="clustering")


def test_a_model_without_prompts_computes_and_is_called_as_before(loaded, tmp_path):
    model = Embedder(loaded)
    assert model.prompts == {} and model.fingerprint == loaded.fingerprint == loaded.unprompted_fingerprint
    np.testing.assert_array_equal(model.encode_queries(TEXTS, **ALL), model.encode(TEXTS, **ALL))
    assert query_encoder(model) == model.encode_queries and document_encoder(model) == model.encode
    save_model(tmp_path, loaded.config, loaded.vocabulary, loaded.params, stage="pair")
    assert "prompts" not in (tmp_path / "model.json").read_text()


def test_other_prompts_make_another_model(loaded, folder):
    own = Embedder.load(folder)
    same, other, none = (
        Embedder.load(folder, prompts=given)
        for given in ({"query": "ask: "}, {"query": "find: "}, dict.fromkeys(PROMPTS, ""))
    )
    assert own.fingerprint == same.fingerprint == load_model(folder).fingerprint
    assert none.fingerprint == loaded.fingerprint
    assert len({own.fingerprint, other.fingerprint, none.fingerprint}) == 3
    given = load_encoder(folder, query_prompt="find: ", document_prompt="")
    np.testing.assert_array_equal(given.encode_queries(TEXTS, **ALL), plain(loaded, "find: "))
    np.testing.assert_array_equal(document_encoder(given)(TEXTS, **ALL), plain(loaded, ""))


def test_a_cache_keeps_texts_with_other_prompts_apart(loaded, folder):
    model = CachingEncoder(PromptedEncoder(CachingEncoder(Embedder.load(folder)), {"query": "find: "}))
    for _ in range(2):
        np.testing.assert_array_equal(model.encode(TEXTS, **ALL), plain(loaded, ""))
        np.testing.assert_array_equal(document_encoder(model)(TEXTS, **ALL), plain(loaded, "tell: "))
        np.testing.assert_array_equal(model.encode_queries(TEXTS, **ALL), plain(loaded, "find: "))
    assert model.fingerprint != Embedder.load(folder).fingerprint


def test_a_merge_keeps_the_prompts_and_refuses_two_kinds(loaded, folder, tmp_path):
    merge_checkpoints(folder, folder, tmp_path / "merged")
    assert load_model(tmp_path / "merged").prompts == PROMPTS
    other = dataclasses.replace(loaded, prompts={})
    save_model(tmp_path / "plain", other.config, other.vocabulary, other.params, stage="pair")
    with pytest.raises(BadInput, match="prompts are .* and {}"):
        merge_checkpoints(folder, tmp_path / "plain", tmp_path / "mixed")
