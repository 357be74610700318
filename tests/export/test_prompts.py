"""Prompts of an export: sentence-transformers and the context model use them, and an import reads them back."""

import json

import numpy as np
import pytest

from pplx_jax.checkpoints.model_folder import load_model, save_model
from pplx_jax.export import export_hf as export
from pplx_jax.export import export_parity
from pplx_jax.inference.embedder import Embedder

pytestmark = pytest.mark.slow

PROMPTS = {"query": "ask: ", "document": "tell the ", "sts": "compare: "}
TEXTS = ["read a file line by line", "def read(path):", "<sep> in a text"]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    save_model(folder / "model", model.config, model.vocabulary, model.params, stage="contextual", prompts=PROMPTS)
    export.export_hf(folder / "model", folder / "prompted", "context_v1")
    return folder / "prompted"


def test_sentence_transformers_uses_the_prompts(exported, model):
    from sentence_transformers import SentenceTransformer

    pipeline = SentenceTransformer(str(exported), device="cpu", trust_remote_code=True)
    assert {name: text for name, text in pipeline.prompts.items() if text} == PROMPTS
    ours = Embedder.load(exported)
    assert ours.prompts == PROMPTS
    for found, prompt in (
        (pipeline.encode_query(TEXTS), "ask: "),
        (pipeline.encode_document(TEXTS), "tell the "),
        (pipeline.encode(TEXTS, prompt_name="sts"), "compare: "),
        (pipeline.encode(TEXTS), ""),
    ):
        np.testing.assert_array_equal(found, Embedder(model).encode([prompt + text for text in TEXTS]))
        np.testing.assert_array_equal(found, ours.encode(TEXTS, prompt=prompt))


def test_the_context_model_puts_them_before_the_first_chunk(exported):
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(exported, trust_remote_code=True)
    ours = Embedder.load(exported)
    documents = [TEXTS, ["", "x"], TEXTS[:1]]
    for name in PROMPTS:
        expected = ours.encode_documents(documents, prompt_name=name)
        for found, wanted in zip(theirs.encode(documents, prompt_name=name), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    plain = ours.encode_documents(documents, prompt="")
    for found, wanted in zip(theirs.encode(documents), plain, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="'clustering' is not one of query, document, sts"):
        theirs.encode(documents, prompt_name="clustering")


def test_the_card_names_the_prompts(exported):
    card = (exported / "README.md").read_text()
    assert '| query | `"ask: "` |' in card and "No instruction prefix" not in card
    assert load_model(exported).prompts == PROMPTS


def test_parity_fails_if_the_pipeline_has_other_prompts(exported, model, tmp_path, monkeypatch):
    written = exported / "config_sentence_transformers.json"
    before = written.read_text()
    try:
        written.write_text(json.dumps({**json.loads(before), "prompts": {**PROMPTS, "query": "find: "}}))
        with pytest.raises(RuntimeError):
            export_parity.check_parity(exported, load_model(exported.with_name("model")))
    finally:
        written.write_text(before)
