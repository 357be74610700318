"""The exports in the oldest release of transformers that has Qwen3, in a process of its own.

`make test` installs it into `.venv/oldest` from `constraints-oldest.txt`, out of the environment's way.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers.exported import IDS, MASK, hidden, load

OLDEST = pathlib.Path(sys.prefix) / "oldest"


@pytest.fixture(scope="module")
def computed(exports, family_exports, tmp_path_factory):
    """The folder of what the oldest release computed with each export: KIND.npz or FAMILY.npz."""
    if not (OLDEST / "transformers").exists():
        pytest.skip(f"no transformers in {OLDEST}; `make test` installs it")
    scratch = tmp_path_factory.mktemp("oldest")
    np.savez(scratch / "inputs.npz", ids=IDS.numpy(), mask=MASK.numpy())
    program = pathlib.Path(__file__).with_name("open_export.py")
    folders = [export[0] for export in (*exports.values(), *family_exports.values())]
    subprocess.run(
        [sys.executable, program, "inputs.npz", *folders],
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": os.fspath(OLDEST), "HF_MODULES_CACHE": os.fspath(scratch / "modules")},
        check=True,
    )
    return scratch


@pytest.fixture(params=["v1", "context_v1", "llama", "qwen2"])
def opened(request, computed, exports, family_exports):
    """A kind or family of export, its folder, and what the oldest release computed with it."""
    folder = (exports | family_exports)[request.param][0]
    return request.param, folder, np.load(computed / f"{request.param}.npz")


def test_the_oldest_release_computes_the_same(opened):
    kind, export, found = opened
    assert str(found["version"]).startswith("4.51.")
    valid = MASK.numpy().astype(bool)
    newest = load(export)
    np.testing.assert_allclose(found["hidden"][valid], hidden(newest), atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["plain"][valid], hidden(newest), atol=1e-4, rtol=0)
    if kind != "v1":
        chunks = np.concatenate(newest.encode([["read a file", "line by line"], ["a query"]]))
        np.testing.assert_array_equal(found["chunks"], chunks)


def test_without_a_mask_no_text_is_causal(opened):
    _, export, found = opened
    expected = hidden(load(export))[:7]  # the first text has no padding
    for name in ("without_mask", "eager_without_mask"):
        np.testing.assert_allclose(found[name][0], expected, atol=1e-4, rtol=0)


def test_a_saved_model_has_its_code(opened):
    _, export, found = opened
    assert set(found["saved"]) >= {path.name for path in export.glob("*_pplx_*.py")}
    np.testing.assert_array_equal(found["again"], found["hidden"])


def test_the_oldest_release_makes_the_same_tokens(opened, vocabulary):
    _, _, found = opened
    assert found["tokens"].tolist() == vocabulary.encode("read a file line by line")
