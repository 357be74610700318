"""A model family of another package trains, is loaded and encodes; without the package, a one-line error says so."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.model_folder import load_config, load_model
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.train_stage import train

MODELS = '''
"""Qwen3 with a learned scale of its output."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from pplx_jax.models.transformer import Qwen3, Qwen3Config


class Scaled(Qwen3):
    def __init__(self, config, rngs):
        super().__init__(config, rngs)
        self.output_scale = nnx.Param(jnp.full((config.width,), config.first_scale))

    def __call__(self, tokens, segment_ids, positions):
        return super().__call__(tokens, segment_ids, positions) * self.output_scale[...]


@dataclasses.dataclass(frozen=True)
class ScaledConfig(Qwen3Config):
    first_scale: float = 0.5

    def build(self, rngs):
        return Scaled(self, rngs)
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "__init__.py").write_text("")
    (tmp_path / "my_models" / "scaled.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_models.scaled")
    for name in ("my_models.scaled", "my_models"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_it_trains_and_encodes_by_its_own_class(lab, tmp_path, monkeypatch):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    tables = tiny.tiny_tables(tmp_path / "tokens", vocabulary)
    config = lab.ScaledConfig(**vars(tiny.tiny_config(vocabulary)))
    folder = tmp_path / "pair"
    train(folder, tiny.training("pair", steps=2), config, tables["pair"], vocabulary, mesh=Mesh(), seed=0)
    assert json.loads((folder / "model.json").read_text())["config_class"] == "my_models.scaled:ScaledConfig"
    assert load_config(folder) == config
    model = load_model(folder)
    trained, first = model.params["output_scale"], initial_params(config, 0)["output_scale"]
    assert not np.array_equal(trained, first) and np.all(np.asarray(first) == 0.5)
    encoder = Embedder.load(folder)
    pooled = encoder.encode(["read file"], quantization="none")
    # The same weights in the plain model give the same vectors without the scale.
    plain = {name: leaf for name, leaf in model.params.items() if name != "output_scale"}
    bare = Embedder(type(model)(tiny.tiny_config(vocabulary), vocabulary, jax.device_get(plain), "v1", "pair"))
    unscaled = bare.encode(["read file"], quantization="none")
    np.testing.assert_allclose(pooled, unscaled * np.asarray(trained), rtol=1e-5)

    for name in ("my_models.scaled", "my_models"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(BadInput, match=r"my_models.scaled:ScaledConfig, which cannot be imported .* on PYTHONPATH"):
        load_model(folder)


def test_a_class_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "config_class": "json:dumps", "model": {}}))
    with pytest.raises(BadInput, match="json:dumps is not a subclass of Qwen3Config"):
        load_config(tmp_path)
