"""Import of GGUF files: as transformers reads them, with their values, and with fewer layers."""

import dataclasses
import sys

import numpy as np
import pytest
from helpers.gguf_model import write_gguf
from helpers.hf_folder import read_tensors, write_source

from pplx_jax.checkpoints.huggingface import reader
from pplx_jax.checkpoints.huggingface.gguf_file import read_gguf
from pplx_jax.checkpoints.huggingface.reader import ImportPlan
from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.cli import main as cli
from pplx_jax.export import import_parity
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.import_hf import import_hf


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_from_the_file_to_an_export(architecture, tmp_path):
    values = write_gguf(tmp_path / "model.gguf", architecture)
    assert cli.main(["import-hf", str(tmp_path / "model.gguf"), str(tmp_path / "model")]) == 0
    model = load_model(tmp_path / "model")
    assert model.vocabulary.mask == "<|fim_pad|>" and model.config.causal
    report = export_hf(tmp_path / "model", tmp_path / "export")
    assert report["parity"]["max_abs_diff"] <= 1e-4
    tensors = read_tensors(tmp_path / "export")
    assert tensors.keys() == values.keys()
    for key, expected in values.items():
        np.testing.assert_allclose(tensors[key], expected, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.long
def test_rows_that_are_not_put_back_fail_parity(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf", "llama")

    def as_stored(path):
        file = read_gguf(path)
        tensors = {key: dataclasses.replace(tensor, heads=0) for key, tensor in file.tensors.items()}
        return dataclasses.replace(file, tensors=tensors)

    monkeypatch.setattr(reader, "read_gguf", as_stored)
    with pytest.raises(RuntimeError, match=r"\(causal\): hidden states differ by"):
        import_hf(tmp_path / "model.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.long
def test_the_first_layers(tmp_path):
    source = write_source(tmp_path / "source", family="Llama", max_position_embeddings=200)
    words = ["import-hf", str(source), str(tmp_path / "model"), "--layers=2"]
    assert cli.main(words) == 0  # with parity against transformers, cut likewise
    model, whole = load_model(tmp_path / "model"), ImportPlan.of(source, "float32").load()
    assert model.config.layers == 2
    kernels = (found.params["layers"]["mlp"]["up"]["kernel"] for found in (model, whole))
    found, expected = kernels
    np.testing.assert_array_equal(found, expected[:2])
    plan = ImportPlan.of(source, "float32", layers=2)
    states = import_parity.source_states(source, ImportPlan.of(source, "float32").described, plan.vocabulary, "float32")
    with pytest.raises(RuntimeError, match="hidden states differ"):  # all three layers are another model
        import_parity.check_import(plan.load(), states)


@pytest.mark.parametrize("layers", ["0", "4"])
def test_layers_that_it_does_not_have(tmp_path, capsys, layers):
    source = write_source(tmp_path / "source")
    assert cli.main(["import-hf", str(source), str(tmp_path / "model"), f"--layers={layers}"]) == cli.BAD_INPUT
    assert f"layers={layers} of an import" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("module", ["gguf", "accelerate"])
def test_missing_packages(tmp_path, capsys, monkeypatch, module):
    write_gguf(tmp_path / "model.gguf", "llama")
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["import-hf", str(tmp_path / "model.gguf"), str(tmp_path / "model")]) == cli.BAD_INPUT
    assert f"needs the module {module}; pip install 'pplx-jax[convert]'" in capsys.readouterr().err


def test_a_missing_file(tmp_path, capsys):
    assert cli.main(["import-hf", str(tmp_path / "none.gguf"), str(tmp_path / "model")]) == cli.BAD_INPUT
    assert "does not exist" in capsys.readouterr().err
