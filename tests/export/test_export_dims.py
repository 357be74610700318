"""An export of fewer dimensions: its vectors are ours of that width, in every form, also after it was saved again."""

import logging

import numpy as np
import pytest

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.export_parity import check_parity
from pplx_jax.export.run_record import RunRecord
from pplx_jax.inference.embedder import Embedder

pytestmark = pytest.mark.slow

DIMS = 16
TEXTS = ["read a file", "sort a list of words", "close the socket"]


@pytest.fixture(scope="module")
def export(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("narrow") / "out"
    assert cli.main(["export-hf", str(model_folder), str(folder), f"--dims={DIMS}", "--onnx"]) == cli.DONE
    return folder


def test_sentence_transformers_gives_our_vectors_of_that_width(export, model, tmp_path):
    from sentence_transformers import SentenceTransformer

    pipeline = SentenceTransformer(str(export), device="cpu", trust_remote_code=True)
    pipeline.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    embedder = Embedder(model)
    for opened in (pipeline, again):
        assert opened.get_embedding_dimension() == DIMS
        np.testing.assert_array_equal(opened.encode(TEXTS), embedder.encode(TEXTS, dims=DIMS).astype(np.float32))
        for form in ("int8", "binary", "ubinary"):
            expected = embedder.encode(TEXTS, quantization=form, dims=DIMS)
            np.testing.assert_array_equal(opened.encode(TEXTS, quantization=form), expected)
        narrower = embedder.encode(TEXTS, quantization="int8", dims=8)
        np.testing.assert_array_equal(opened.encode(TEXTS, quantization="int8", dims=8), narrower)
        with pytest.raises(ValueError, match="dims=17 of a model of 16 dimensions"):
            opened.encode(TEXTS, dims=17)


def test_the_context_model_and_onnx_have_that_width(export, model):
    import onnxruntime
    from transformers import AutoModel, PreTrainedTokenizerFast

    embedder = Embedder(model)
    documents = [["read a file", "close it"], ["a query"]]
    found = AutoModel.from_pretrained(export, trust_remote_code=True).encode(documents)
    for one, other in zip(found, embedder.encode_documents(documents, dims=DIMS), strict=True):
        np.testing.assert_array_equal(one, other)
    session = onnxruntime.InferenceSession(str(export / "onnx" / "model.onnx"))
    batch = PreTrainedTokenizerFast.from_pretrained(export)(TEXTS, padding=True, return_tensors="np")
    inputs = {name: batch[name].astype("int64") for name in ("input_ids", "attention_mask")}
    hidden, v, int8, binary = session.run(None, inputs)
    assert hidden.shape[-1] == model.config.width and v.shape == (len(TEXTS), DIMS)
    np.testing.assert_array_equal(int8, embedder.encode(TEXTS, dims=DIMS))
    np.testing.assert_array_equal(binary, embedder.encode(TEXTS, quantization="binary", dims=DIMS))
    assert [output.shape[-1] for output in session.get_outputs()] == [model.config.width, DIMS, DIMS, DIMS]


def test_the_card_says_so_and_an_export_of_all_dimensions_is_another(export, model):
    card = (export / "README.md").read_text()
    assert f"| dimensions | {DIMS}: embeddings have the first {DIMS} of {model.config.width} |" in card
    assert f"v = v[:, :{DIMS}]" in card and f"# [2, {DIMS}]" in card
    assert f"Embeddings of {DIMS} dimensions were not trained (smaller widths that were: none is recorded)." in card
    with pytest.raises((RuntimeError, ValueError)):
        check_parity(export, model)  # as if it had all dimensions


def test_a_width_that_was_not_trained_is_warned_about_and_an_impossible_one_refused(model_folder, tmp_path, caplog):
    from pplx_jax.checkpoints.model_folder import load_model
    from pplx_jax.export.export_hf import _checked_dims

    with pytest.raises(BadInput, match="--dims=49: the model has 48 dimensions; give 1 to 48"):
        export_hf(model_folder, tmp_path / "out", dims=49)
    assert not (tmp_path / "out").exists()
    record = RunRecord(settings="WIDTHS = (16, 32)\nPairStage.prefixes = %WIDTHS  # default\n")
    loaded = load_model(model_folder)
    with caplog.at_level(logging.WARNING):
        assert _checked_dims(32, loaded, record) == 32 and _checked_dims(48, loaded, record) is None
        assert "of the export" not in caplog.text
        assert _checked_dims(24, loaded, record) == 24
    assert "dims=24 of the export: the record of the run says that 16, 32 was trained" in caplog.text
