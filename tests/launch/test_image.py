"""The packages of the image are those that the phases of a run need."""

import pytest
from helpers import image

EXTRAS = {"data": "seqio", "convert": "onnx", "eval": "bm25s", "search": "faiss", "tpu": "libtpu"}


def test_the_image_has_what_its_extras_install_and_nothing_else():
    hidden = image.hidden_modules(image.extras_of_the_image())
    assert hidden.isdisjoint({"jax", "orbax", "gin", "google", "pplx_jax", *EXTRAS.values()})
    assert {"pytest", "xmanager", "starlette", "hypothesis"} <= hidden


@pytest.mark.parametrize("extra, module", EXTRAS.items())
def test_without_an_extra_its_modules_are_hidden(extra, module):
    assert module in image.hidden_modules([one for one in image.extras_of_the_image() if one != extra])


@pytest.mark.slow
def test_a_phase_that_lacks_its_extra_is_refused_at_the_start(tmp_path):
    extras = [one for one in image.extras_of_the_image() if one != "eval"]
    done = image.run_in_the_image(
        ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={tmp_path / 'run'}"], extras
    )
    assert done.returncode == 2 and "bm25s; pip install 'pplx-jax[eval]'" in done.stderr
    assert not (tmp_path / "run").exists()
