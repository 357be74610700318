"""A tiny model whose head_dim is not width / heads, its folder, and its exports, made once."""

import dataclasses
import os
import pathlib
import sysconfig
import tempfile

# Before the first import of transformers: nothing is fetched, and model code stays out of the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
_MODULES = tempfile.TemporaryDirectory(prefix="hf-modules-")
os.environ.setdefault("HF_MODULES_CACHE", _MODULES.name)

import pytest  # noqa: E402
from helpers.odd_model import odd_config, odd_params  # noqa: E402

from pplx_jax.checkpoints.loaded_model import LoadedModel  # noqa: E402
from pplx_jax.checkpoints.model_folder import load_model, save_model  # noqa: E402
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary  # noqa: E402
from pplx_jax.data.tokens.vocabulary import Vocabulary  # noqa: E402
from pplx_jax.models.transformer import Qwen3Config  # noqa: E402


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Vocabulary:
    modules = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
    texts = [module.read_text(encoding="utf-8", errors="ignore") for module in modules]
    output = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_vocabulary(texts, output, 1500, sample_bytes=300_000)


@pytest.fixture(scope="session")
def config(vocabulary) -> Qwen3Config:
    return odd_config(vocabulary.size)


@pytest.fixture(scope="session")
def params(config) -> dict:
    return odd_params(config)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, config, vocabulary, params) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, config, vocabulary, params, stage="contextual", kind="context_v1")
    return folder


@pytest.fixture(scope="session")
def model(model_folder) -> LoadedModel:
    loaded = load_model(model_folder)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, dtype="float32"))


@pytest.fixture(scope="session")
def exports(tmp_path_factory, model_folder) -> dict:
    """Kind -> (folder, report)."""
    from pplx_jax.export.export_hf import export_hf

    folder = tmp_path_factory.mktemp("export")
    scores = {"merged": {"int8": {"ndcg@10": 0.5}}}
    return {
        "v1": (folder / "v1", export_hf(model_folder, folder / "v1", "v1", scores=scores)),
        "context_v1": (folder / "context_v1", export_hf(model_folder, folder / "context_v1")),
    }


FAMILIES = {"llama": {"qk_norm": False}, "qwen2": {"qk_norm": False, "qkv_bias": True}}


@pytest.fixture(scope="session")
def family_exports(tmp_path_factory, vocabulary) -> dict:
    """Family -> (folder of a context model with an ONNX graph, report, the model). No Qwen3."""
    from pplx_jax.export.export_hf import export_hf

    found = {}
    for family, fields in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        config = odd_config(vocabulary.size, **fields)
        save_model(folder / "model", config, vocabulary, odd_params(config), stage="contextual", kind="context_v1")
        report = export_hf(folder / "model", folder / family, onnx=True)
        found[family] = folder / family, report, load_model(folder / "model")
    return found


@pytest.fixture(scope="session")
def onnx_export(tmp_path_factory, model_folder) -> tuple[pathlib.Path, dict]:
    """An export with an ONNX graph, and its report."""
    from pplx_jax.export.export_hf import export_hf

    folder = tmp_path_factory.mktemp("export") / "with_onnx"
    return folder, export_hf(model_folder, folder, "v1", onnx=True)
