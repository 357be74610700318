"""`pplx-jax export-hf`: what it reports, and that it fails for weights that are not the model's."""

import json
import sys

import numpy as np
import pytest

from pplx_jax.cli import main as cli
from pplx_jax.export import export_hf as to_huggingface


def run(model_folder, output, capsys, *flags):
    code = cli.main(["export-hf", str(model_folder), str(output), "--json", *flags])
    captured = capsys.readouterr()
    return code, json.loads(captured.out)


def perturbed(tensors):
    """One value of one matrix off by 0.1."""
    key = "layers.1.self_attn.v_proj.weight"
    changed = np.array(tensors[key])
    changed[3, 5] += 0.1
    return {**tensors, key: changed}


def test_it_reports_parity_of_long_texts(model_folder, tmp_path, capsys):
    code, report = run(model_folder, tmp_path / "out", capsys, "--dtype", "bfloat16", "--onnx")
    assert code == cli.DONE
    for name in ("parity", "onnx_parity"):
        assert report[name]["max_abs_diff"] <= 1e-4
        assert 1000 < report[name]["longest_text"] <= 1024  # what the model takes
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()


@pytest.mark.parametrize("writer", ["write_weights", "write_onnx"])
def test_perturbed_weights_fail_and_leave_nothing(model_folder, tmp_path, capsys, monkeypatch, writer):
    write = getattr(to_huggingface, writer)
    monkeypatch.setattr(to_huggingface, writer, lambda tensors, *rest, **more: write(perturbed(tensors), *rest, **more))
    flags = ("--onnx",) if writer == "write_onnx" else ()
    code, report = run(model_folder, tmp_path / "out", capsys, *flags)
    assert code == cli.FAILED
    assert "hidden states differ" in report["error"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "flags", "what"), [("onnx", ("--onnx",), "an ONNX export"), ("torch", (), "an export")]
)
def test_a_missing_package_is_one_line(model_folder, tmp_path, capsys, monkeypatch, module, flags, what):
    monkeypatch.setitem(sys.modules, module, None)
    code, report = run(model_folder, tmp_path / "out", capsys, *flags)
    assert code == cli.BAD_INPUT
    assert report["error"] == f"{what} needs the module {module}; pip install 'pplx-jax[convert]'"
    assert not list(tmp_path.iterdir())
